/* probe - a program that is not ours: says what it was left with, and can do, in WHERE/NAME.UID.PID.
 *
 *     probe [NAME [COMMAND [ARGUMENT ...]]]
 *
 * NAME is its own name if none is given. It then becomes COMMAND; one called queue-... becomes qmail-queue.
 * (Beside the tests, not a program of the system: it is compiled by tests/test_foreign.py.)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *out;
static const char *sockets[] = {"TLSCLIENTFD", "MTASTSFD"};

static void say(const char *what, int result)
{
	fprintf(out, "%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
}

static int connected(const struct sockaddr *to, socklen_t size)
{
	int s = socket(to->sa_family, SOCK_STREAM, 0);
	int result = s < 0 ? s : connect(s, to, size);
	int e = errno;
	close(s);
	errno = e;
	return result;
}

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/');
	const char *name = argc > 1 ? argv[1] : slash ? slash + 1 : argv[0];
	char path[200], final[200], line[4096], link_to[300];
	char open_ones[1024] = "", *end = open_ones;
	for (int fd = 0; fd < 256; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			end += sprintf(end, "%s%d", end == open_ones ? "" : " ", fd);
	mode_t mask = umask(0);
	snprintf(path, sizeof path, WHERE "/%s.%d.%d.new", name, (int)getuid(), (int)getpid());
	snprintf(final, sizeof final, WHERE "/%s.%d.%d", name, (int)getuid(), (int)getpid());
	out = fopen(path, "we");
	if (!out)
		return 111;
	fprintf(out, "descriptors: %s\numask: %03o\nuid: %d\neuid: %d\ngid: %d\negid: %d\n", open_ones, mask, (int)getuid(),
		(int)geteuid(), (int)getgid(), (int)getegid());
	for (int i = 0; i < 2; i++) {
		const char *number = getenv(sockets[i]);
		fprintf(out, "%s: %s\n", sockets[i], number ? number : "");
	}
	gid_t groups[64];
	int n = getgroups(64, groups);
	fprintf(out, "groups:");
	for (int i = 0; i < n; i++)
		fprintf(out, " %d", (int)groups[i]);
	fprintf(out, "\nno_new_privs: %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	FILE *status = fopen("/proc/self/status", "re");
	while (status && fgets(line, sizeof line, status))
		if (!strncmp(line, "Seccomp:", 8) || !strncmp(line, "NoNewPrivs:", 11) || !strncmp(line, "Sig", 3) || !strncmp(line, "Shd", 3))
			fputs(line, out);
	if (status)
		fclose(status);
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit l;
		getrlimit(i, &l);
		fprintf(out, "rlimit %d: %lld %lld\n", i, (long long)l.rlim_cur, (long long)l.rlim_max);
	}

	/* What every jail forbids in some way. */
	snprintf(link_to, sizeof link_to, WHERE "/sub/%s.%d", name, (int)getpid());
	int fd = open(link_to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	say("create", fd);
	close(fd);
	snprintf(line, sizeof line, WHERE "/other/%s.%d", name, (int)getpid());
	say("rename elsewhere", rename(link_to, line));
	say("unlink", unlink(line));
	struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(25), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	say("connect tcp", connected((struct sockaddr *)&tcp, sizeof tcp));
	struct sockaddr_un local = {.sun_family = AF_UNIX, .sun_path = "\0qmail-probe"};
	say("connect abstract", connected((struct sockaddr *)&local, sizeof(sa_family_t) + 12));
	say("signal the parent", kill(getppid(), 0));
	int pid = fork(), wait_status = -1;
	if (pid == 0) {
		execl("/bin/true", "true", (char *)0);
		_exit(errno);
	}
	if (pid > 0)
		waitpid(pid, &wait_status, 0);
	fprintf(out, "execute: %d\n", wait_status);
	fchmod(fileno(out), 0644);
	if (fclose(out) || rename(path, final))
		return 111;
	umask(mask);
	if (argc > 2)
		execvp(argv[2], argv + 2);
	else if (!strncmp(name, "queue-", 6))
		execl("/var/qmail/bin/qmail-queue", "qmail-queue", (char *)0);
	else
		return 0;
	return 111;
}
