/* calls_tracer - runs a program, numbers its system calls, and makes one of them fail.
 *
 *     calls_tracer [options] -- PROGRAM [ARGUMENT ...]
 *
 *     -l FILE     the report goes here
 *     -u UID -g GID                 who the program is
 *     -p PROCESS -n NUMBER -f FAULT the fault, at this call of this process
 *     -t SECONDS  all clocks of the program are ahead by so much; it sleeps in no time
 *     -w IN,OUT   before the first process waits in poll, eight bytes go to OUT: for how many milliseconds it would
 *                 (-1: for ever); one byte comes from IN: g it looks again, j the clocks go on and it has waited;
 *                 before that, the clock on the wall is set: f 40 hours forth, b 40 hours back, s the machine sleeps as long,
 *                 u it was started as long before
 *     -W IN,OUT   the same, and before every poll they go there too, as -2
 *     -a          all that comes before the first SIGSTOP is not looked at
 *     -d SECONDS  everything is killed after this time
 *
 * PROCESS is 0 for the program, 0.0 for its first child, 0.1 for the second ... Calls are numbered from 1, which
 * is the first behind execve. FAULT is one of
 *
 *     error=N     the call is not made; it ends with errno N
 *     after=N     the call is made; it ends with errno N
 *     count=N     its third argument, how many bytes, is N
 *     kill        SIGKILL, and the call is not made
 *
 * The report, a line each: c PROCESS NUMBER CALL RESULT ARGUMENTS (of every call, unless there is a fault), x PROCESS FILE
 * (what it has become), f PROCESS NUMBER CALL (the fault was made), e PROCESS STATUS (its end, as by wait(2)), d (all was killed).
 * Calls that ask for the time are not counted: mostly they are none (vDSO). With -t they are.
 *
 * For x86-64. The seccomp filters of the program stay: who must not make a call is answered by them before it is replaced.
 * (Beside the tests, not a program of the system: it is compiled by tests/crash/calls_rig.py.)
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCESSES 256 /* more than any case has */
#define NAME 64       /* 0.0.0 and so on */

/* linux/ptrace.h, which does not go together with sys/ptrace.h */
struct syscall_info {
	uint8_t op;
	uint8_t pad[3];
	uint32_t arch;
	uint64_t instruction_pointer, stack_pointer;
	union {
		struct {
			uint64_t nr, args[6];
		} entry;
		struct {
			int64_t rval;
			uint8_t is_error;
		} exit;
	};
};
#define ENTRY 1
#define EXIT 2

struct process {
	pid_t pid;
	char name[NAME];
	int children;     /* born so far */
	int calls;        /* counted so far */
	int early;        /* stopped before its parent told of it */
	int answer;       /* at the end of this call: minus errno, if not 0 */
	int slept;        /* at the end of this call: 0 */
	int looks;        /* this poll is only to see what is ready */
	int again;        /* this one is the same once more */
	int64_t milliseconds; /* how long it would wait; -1: for ever */
	uint64_t number;  /* of the call it is in */
	uint64_t args[6];
	char text[512];
};

static struct process table[PROCESSES];
static int known;
static FILE *report;
static const char *fault_process, *fault;
static int fault_call, faulted, hook_in = -1, hook_out = -1, hook_early, fake, asleep, started;
static struct timespec ahead;
static long on_the_wall, since_boot; /* seconds that only these clocks have gained */
#define JUMP (40 * 3600L)
static volatile sig_atomic_t too_late;

static void die(const char *what)
{
	fprintf(stderr, "calls_tracer: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void late(int number)
{
	(void)number;
	too_late = 1;
	for (int i = 0; i < known; i++)
		if (table[i].pid)
			kill(table[i].pid, SIGKILL);
}

static void nothing(int number)
{
	(void)number;
}

static struct process *find(pid_t pid)
{
	for (int i = 0; i < known; i++)
		if (table[i].pid == pid)
			return &table[i];
	if (known == PROCESSES)
		die("too many processes");
	struct process *p = &table[known++];
	p->pid = pid;
	return p;
}

static int peek(pid_t pid, uint64_t from, void *to, size_t size)
{
	struct iovec here = {to, size}, there = {(void *)from, size};
	return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

static int poke(pid_t pid, uint64_t to, void *from, size_t size)
{
	struct iovec here = {from, size}, there = {(void *)to, size};
	return process_vm_writev(pid, &here, 1, &there, 1, 0) == (ssize_t)size ? 0 : -1;
}

/* A string of the program; what is not printable becomes a question mark. */
static void string(pid_t pid, uint64_t from, char *to, size_t room)
{
	size_t n = 0;
	while (n + 1 < room) {
		char c;
		if (peek(pid, from + n, &c, 1) || !c)
			break;
		to[n++] = c > ' ' && c < 127 ? c : '?';
	}
	to[n] = 0;
}

static void set(pid_t pid, size_t which, uint64_t value)
{
	if (ptrace(PTRACE_POKEUSER, pid, which, value) && errno != ESRCH)
		die("POKEUSER");
}
#define REGISTER(name) offsetof(struct user_regs_struct, name)

static int asks_for_time(uint64_t number)
{
	return number == SYS_clock_gettime || number == SYS_gettimeofday || number == SYS_time;
}

static void go_on_by(int64_t seconds, int64_t nanoseconds)
{
	ahead.tv_sec += seconds;
	ahead.tv_nsec += nanoseconds;
	while (ahead.tv_nsec >= 1000000000) {
		ahead.tv_nsec -= 1000000000;
		ahead.tv_sec++;
	}
}

/* The clock of the kernel is told to nobody without us: no vDSO. */
static void hide_clock(pid_t pid)
{
	struct user_regs_struct r;
	if (ptrace(PTRACE_GETREGS, pid, 0, &r))
		return;
	uint64_t at = r.rsp, word;
	if (peek(pid, at, &word, 8))
		return;
	at += 8 * (word + 2);
	do {
		if (peek(pid, at, &word, 8))
			return;
		at += 8;
	} while (word);
	for (;; at += 16) {
		if (peek(pid, at, &word, 8) || word == AT_NULL)
			return;
		if (word == AT_SYSINFO_EHDR) {
			word = AT_IGNORE;
			poke(pid, at, &word, 8);
			return;
		}
	}
}

/* What is worth knowing of a call, beside its number. */
static void describe(struct process *p)
{
	char one[200] = "", two[200] = "";
	uint64_t *a = p->args;
	switch (p->number) {
	case SYS_open: case SYS_unlink: case SYS_chdir: case SYS_stat: case SYS_lstat: case SYS_execve: case SYS_mkdir:
	case SYS_rmdir: case SYS_chmod: case SYS_access: case SYS_readlink:
		string(p->pid, a[0], one, sizeof one);
		snprintf(p->text, sizeof p->text, "%s", one);
		break;
	case SYS_openat: case SYS_unlinkat: case SYS_newfstatat: case SYS_statx: case SYS_fchmodat: case SYS_utimensat: case SYS_readlinkat:
		string(p->pid, a[1], one, sizeof one);
		snprintf(p->text, sizeof p->text, "%s", one);
		break;
	case SYS_rename: case SYS_link: case SYS_symlink:
		string(p->pid, a[0], one, sizeof one);
		string(p->pid, a[1], two, sizeof two);
		snprintf(p->text, sizeof p->text, "%s,%s", one, two);
		break;
	case SYS_linkat: case SYS_renameat: case SYS_renameat2:
		string(p->pid, a[1], one, sizeof one);
		string(p->pid, a[3], two, sizeof two);
		snprintf(p->text, sizeof p->text, "%s,%s", one, two);
		break;
	default:
		snprintf(p->text, sizeof p->text, "%lld,%#llx,%lld", (long long)a[0], (long long)a[1], (long long)a[2]);
	}
}

static void happened(pid_t pid, int status);

/* The answer to a question that has been asked at hook_out; all others go on meanwhile. */
static char answered(void)
{
	char answer = 0;
	while (!too_late) {
		int status;
		pid_t pid = waitpid(-1, &status, __WALL | WNOHANG);
		if (pid > 0) {
			happened(pid, status);
			continue;
		}
		struct pollfd in = {hook_in, POLLIN, 0};
		if (poll(&in, 1, 1) > 0) {
			if (read(hook_in, &answer, 1) != 1)
				answer = 0;
			break;
		}
	}
	return answer;
}

/* Before a wait in poll it is asked what is ready now: then it would not wait. */
static void look(struct process *p, int ask)
{
	struct timespec zero = {0, 0}, t;
	int64_t early = -2;
	if (ask && write(hook_out, &early, 8) == 8)
		answered();
	p->milliseconds = -1;
	if (p->number == SYS_ppoll) {
		if (p->args[2]) {
			if (peek(p->pid, p->args[2], &t, sizeof t))
				return;
			p->milliseconds = t.tv_sec * 1000 + (t.tv_nsec + 999999) / 1000000;
		}
		uint64_t below = ptrace(PTRACE_PEEKUSER, p->pid, REGISTER(rsp), 0) - 512; /* nobody's */
		if (!p->milliseconds || poke(p->pid, below, &zero, sizeof zero))
			return;
		set(p->pid, REGISTER(rdx), below);
	} else {
		p->milliseconds = (int)p->args[2];
		set(p->pid, REGISTER(rdx), 0);
	}
	p->looks = p->milliseconds != 0;
}

/* Nothing is: what the others do now, and whether it looks again, or time passes. */
static int hook(struct process *p)
{
	struct user_regs_struct r;
	if (write(hook_out, &p->milliseconds, 8) != 8)
		return 0;
	char answer = answered();
	if (answer == 'f' || answer == 's')
		on_the_wall += JUMP;
	if (answer == 'b')
		on_the_wall -= JUMP;
	if (answer == 's' || answer == 'u')
		since_boot += JUMP;
	if (answer == 'j') {
		if (p->milliseconds > 0)
			go_on_by(p->milliseconds / 1000, p->milliseconds % 1000 * 1000000);
		return 0;
	}
	if (ptrace(PTRACE_GETREGS, p->pid, 0, &r))
		return 0;
	r.rip -= 2; /* the call is made once more, as it was meant */
	r.rax = p->number;
	r.orig_rax = -1;
	r.rdx = p->args[2];
	ptrace(PTRACE_SETREGS, p->pid, 0, &r);
	p->again = 1;
	return 1;
}

static void enter(struct process *p, struct syscall_info *info)
{
	if (p->again) {
		p->again = 0;
		look(p, 0);
		return;
	}
	p->number = info->entry.nr;
	memcpy(p->args, info->entry.args, sizeof p->args);
	p->answer = p->slept = p->looks = 0;
	if (asks_for_time(p->number))
		return;
	p->calls++;
	if (!fault)
		describe(p);
	if (fault && !faulted && p->calls == fault_call && !strcmp(p->name, fault_process)) {
		faulted = 1;
		fprintf(report, "f %s %d %llu\n", p->name, p->calls, (unsigned long long)p->number);
		if (!strcmp(fault, "kill")) {
			kill(p->pid, SIGKILL);
			return;
		}
		if (!strncmp(fault, "count=", 6))
			set(p->pid, REGISTER(rdx), strtoull(fault + 6, 0, 10));
		else
			p->answer = atoi(fault + 6);
		if (!strncmp(fault, "error=", 6)) {
			set(p->pid, REGISTER(orig_rax), -1);
			return;
		}
	}
	if (hook_in >= 0 && p == table && (p->number == SYS_poll || p->number == SYS_ppoll))
		look(p, hook_early);
	if (fake && (p->number == SYS_nanosleep || p->number == SYS_clock_nanosleep)) {
		struct timespec t;
		int plain = p->number == SYS_nanosleep;
		if ((plain || !(p->args[1] & TIMER_ABSTIME)) && !peek(p->pid, p->args[plain ? 0 : 2], &t, sizeof t)) {
			go_on_by(t.tv_sec, t.tv_nsec);
			set(p->pid, REGISTER(orig_rax), -1);
			p->slept = 1;
		}
	}
}

static void leave(struct process *p, struct syscall_info *info)
{
	if (p->looks && !info->exit.rval) {
		p->looks = 0;
		if (hook(p))
			return;
	}
	if (fake && p->number == SYS_clock_gettime && !info->exit.is_error && p->args[0] != CLOCK_PROCESS_CPUTIME_ID &&
	    p->args[0] != CLOCK_THREAD_CPUTIME_ID) {
		struct timespec t;
		if (!peek(p->pid, p->args[1], &t, sizeof t)) {
			t.tv_sec += ahead.tv_sec;
			if (p->args[0] == CLOCK_REALTIME || p->args[0] == CLOCK_REALTIME_COARSE)
				t.tv_sec += on_the_wall;
			if (p->args[0] == CLOCK_BOOTTIME)
				t.tv_sec += since_boot;
			t.tv_nsec += ahead.tv_nsec;
			if (t.tv_nsec >= 1000000000) {
				t.tv_nsec -= 1000000000;
				t.tv_sec++;
			}
			poke(p->pid, p->args[1], &t, sizeof t);
		}
	}
	if (p->answer)
		set(p->pid, REGISTER(rax), -(int64_t)p->answer);
	else if (p->slept)
		set(p->pid, REGISTER(rax), 0);
	if (!fault && p->calls && !asks_for_time(p->number))
		fprintf(report, "c %s %d %llu %lld %s\n", p->name, p->calls, (unsigned long long)p->number, (long long)info->exit.rval, p->text);
	p->number = -1;
	p->answer = p->slept = 0;
}

/* Only who may still be hit is stopped at its calls. */
static int is_watched(struct process *p)
{
	return asleep ? 0 : fake || hook_in >= 0 || !fault || p->answer || (!faulted && !strcmp(p->name, fault_process));
}

static void resume(struct process *p, int number)
{
	ptrace(is_watched(p) ? PTRACE_SYSCALL : PTRACE_CONT, p->pid, 0, number);
}

static void born(struct process *parent, pid_t pid)
{
	struct process *p = find(pid);
	if (snprintf(p->name, NAME, "%.40s.%d", parent->name, parent->children++) >= NAME)
		die("too deep");
	if (p->early) {
		p->early = 0;
		resume(p, 0);
	}
}

static void become(struct process *p)
{
	char link[40], path[PATH_MAX];
	snprintf(link, sizeof link, "/proc/%d/exe", p->pid);
	ssize_t n = readlink(link, path, sizeof path - 1);
	fprintf(report, "x %s %.*s\n", p->name, n > 0 ? (int)n : 1, n > 0 ? path : "?");
	if (fake)
		hide_clock(p->pid);
}

static void stopped(struct process *p, int status)
{
	int number = WSTOPSIG(status), event = status >> 16;
	if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
		unsigned long child;
		if (!ptrace(PTRACE_GETEVENTMSG, p->pid, 0, &child))
			born(p, child);
		resume(p, 0);
	} else if (event == PTRACE_EVENT_EXEC) {
		become(p);
		resume(p, 0);
	} else if (number == (SIGTRAP | 0x80)) {
		struct syscall_info info;
		if (ptrace(PTRACE_GET_SYSCALL_INFO, p->pid, sizeof info, &info) > 0) {
			if (info.op == ENTRY)
				enter(p, &info);
			else if (info.op == EXIT)
				leave(p, &info);
		}
		resume(p, 0);
	} else if (!p->name[0]) {
		p->early = 1; /* goes on when its parent has told of it */
	} else if (!event) {
		if (number == SIGSTOP)
			asleep = 0;
		resume(p, number == SIGSTOP ? 0 : number);
	} else
		resume(p, 0);
}

static void happened(pid_t pid, int status)
{
	struct process *p = find(pid);
	if (WIFEXITED(status) || WIFSIGNALED(status)) {
		/* A call that does not return. */
		if (!fault && p->calls && (p->number == SYS_exit_group || p->number == SYS_exit))
			fprintf(report, "c %s %d %llu 0\n", p->name, p->calls, (unsigned long long)p->number);
		fprintf(report, "e %s %d\n", p->name, status);
		p->pid = 0;
		p->name[0] = 0;
	} else if (!started) {
		if (ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEFORK |
			   PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL))
			die("SETOPTIONS");
		started = 1;
		ptrace(PTRACE_CONT, pid, 0, 0);
	} else
		stopped(p, status);
}

int main(int argc, char **argv)
{
	int option, seconds = 60;
	uid_t uid = -1;
	gid_t gid = -1;
	const char *file = 0;
	while ((option = getopt(argc, argv, "+l:u:g:p:n:f:t:w:W:ad:")) >= 0)
		switch (option) {
		case 'l': file = optarg; break;
		case 'u': uid = atoi(optarg); break;
		case 'g': gid = atoi(optarg); break;
		case 'p': fault_process = optarg; break;
		case 'n': fault_call = atoi(optarg); break;
		case 'f': fault = optarg; break;
		case 't': fake = 1; ahead.tv_sec = atoll(optarg); break;
		case 'W': hook_early = 1; /* fall through */
		case 'w':
			if (sscanf(optarg, "%d,%d", &hook_in, &hook_out) != 2)
				return 2;
			break;
		case 'a': asleep = 1; break;
		case 'd': seconds = atoi(optarg); break;
		default: return 2;
		}
	if (!file || optind == argc || (fault && (!fault_process || !fault_call)))
		return 2;
	report = fopen(file, "we");
	if (!report)
		die(file);
	if (hook_in >= 0 && (fcntl(hook_in, F_SETFD, FD_CLOEXEC) || fcntl(hook_out, F_SETFD, FD_CLOEXEC)))
		die("hook");
	struct process *first = find(0);
	strcpy(first->name, "0");
	first->pid = fork();
	if (first->pid < 0)
		die("fork");
	if (!first->pid) {
		if ((gid != (gid_t)-1 && (setgroups(1, &gid) || setgid(gid))) || (uid != (uid_t)-1 && setuid(uid)))
			die("become");
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execvp(argv[optind], argv + optind);
		die(argv[optind]);
	}
	/* Ends of pipes are the program's alone. */
	for (int fd = 0; fd < 64; fd++)
		if (fd != 2 && fd != hook_in && fd != hook_out && fd != fileno(report))
			close(fd);
	struct sigaction action = {.sa_handler = late};
	sigaction(SIGALRM, &action, 0);
	action.sa_handler = nothing;
	sigaction(SIGCHLD, &action, 0); /* ends a wait for an answer */
	signal(SIGPIPE, SIG_IGN);
	alarm(seconds);
	int status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
		if (pid > 0)
			happened(pid, status);
		if (too_late)
			late(0);
	}
	if (too_late)
		fprintf(report, "d\n");
	return 0;
}
