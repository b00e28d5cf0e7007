/* load - what the measurements drive mail systems with, and what they send to
 *
 *     load smtp   [-h HOST] [-p PORT] [-c CONNECTIONS] [-m MESSAGES] [-l BYTES] [-u USERS] [-d DOMAIN] [-k KEEP]
 *     load inject [-R ROOT] [-U UID] [-c WRITERS] [-m MESSAGES] [-l BYTES] [-u USERS] [-d DOMAIN] [-r RECIPIENTS] [-H HOSTS] PROGRAM [ARGUMENT ...]
 *     load fresh  [-h HOST] [-p PORT] [-m MESSAGES] [-l BYTES] [-d DOMAIN] DIRECTORY
 *     load watch  [-m MESSAGES] [-t SECONDS] DIRECTORY ...
 *     load sink   [-p PORT] COUNTERS
 *     load pop    [-h HOST] [-p PORT] [-d USER] [-P PASSWORD]
 *     load idle   [-h HOST] [-p PORT] [-c CONNECTIONS]
 *     load start  [-m TIMES] PROGRAM [ARGUMENT ...]
 *     load raw    [-c WRITERS] [-m FILES] [-l BYTES] DIRECTORY
 *
 * Each prints one line of JSON at its end; watch and idle say "ready" before. (Beside the tests, not a program of the
 * system: it is compiled by tests/bench/ground.py.)
 *
 * smtp    one message a connection (-k: more), the next command when the last is answered, but for QUIT; the recipient is u0, u1 … in turn
 * inject  PROGRAM with the message on fd 0 and -f, sender and recipients added to its arguments, so many at a time
 * fresh   one message after the other: how long until it is in DIRECTORY
 * watch   how long until so many files have come into the directories
 * sink    accepts everything at 127.0.1.1 to 127.0.1.100 and 127.0.2.1; counts in a file that others map, in which
 *         DEFER makes 127.0.2.1 defer each recipient, and DELAY has every byte that comes looked at so many milliseconds
 *         later, as if the way were that long
 * raw     create, write, fsync, rename, sync of the directory
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT 600        /* seconds any single wait may take: far above what is measured, far below for ever */
#define SINK_HOSTS 100  /* addresses of the sink: 127.0.1.1 and on */
#define BUFFER 65536

static const char *host = "127.0.0.1", *domain = "bench.example", *password = "secret", *root;
static int port = 25, connections = 1, messages = 1, users = 1, keep = 1, recipients = 1, hosts, uid = -1, seconds = WAIT;
static size_t size = 1024;

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(111);
}

static uint64_t now(void) /* nanoseconds, the same clock in all processes */
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double own_cpu(void) /* seconds this process itself used, without its children */
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static void times_say(uint64_t *times, int n)
{
	qsort(times, n, sizeof *times, by_size);
	printf("\"ms\": {\"median\": %.3f, \"p95\": %.3f, \"least\": %.3f, \"most\": %.3f}", n ? times[n / 2] / 1e6 : 0,
	       n ? times[(int)(n * 0.95)] / 1e6 : 0, n ? times[0] / 1e6 : 0, n ? times[n - 1] / 1e6 : 0);
}

static void *get(size_t n)
{
	void *p = calloc(1, n ? n : 1);
	if (!p)
		die("memory");
	return p;
}

/* The message: BYTES in lines of 64, with the ends of line given. */
static char *message(const char *eol, size_t *length)
{
	char *text = get(size + 256);
	size_t n = sprintf(text, "From: <sender@sink.example>%sTo: <reader@%s>%sSubject: bench%s%s", eol, domain, eol, eol, eol);
	while (n < size) {
		size_t line = size - n < 64 ? size - n : 64, e = strlen(eol);
		memset(text + n, 'x', line);
		n += line > e ? line - e : 0;
		memcpy(text + n, eol, e);
		n += e;
	}
	*length = n;
	return text;
}

static int dial(const char *address, int flags)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
	if (s < 0)
		die("socket");
	inet_pton(AF_INET, address, &to.sin_addr);
	if (connect(s, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
		close(s);
		return -1;
	}
	return s;
}

/* ---- a blocking line for the simple clients */

struct line {
	int fd;
	size_t at, have;
	char buffer[BUFFER];
};

static char *line_get(struct line *l, size_t *length) /* without the end of line; NULL at the end */
{
	for (;;) {
		char *end = memchr(l->buffer + l->at, '\n', l->have - l->at);
		if (end) {
			char *start = l->buffer + l->at;
			*length = end - start;
			l->at = end + 1 - l->buffer;
			return start;
		}
		memmove(l->buffer, l->buffer + l->at, l->have - l->at);
		l->have -= l->at;
		l->at = 0;
		if (l->have == sizeof l->buffer)
			return NULL;
		ssize_t n = read(l->fd, l->buffer + l->have, sizeof l->buffer - l->have);
		if (n <= 0)
			return NULL;
		l->have += n;
	}
}

static int code_get(struct line *l) /* of an SMTP reply; 0 when there is none */
{
	size_t n;
	char *s;
	do
		s = line_get(l, &n);
	while (s && n > 3 && s[3] == '-');
	return s ? atoi(s) : 0;
}

static void all_put(int fd, const char *text, size_t n)
{
	while (n) {
		ssize_t w = write(fd, text, n);
		if (w < 0)
			die("write to the server");
		text += w;
		n -= w;
	}
}

static struct line *line_open(void)
{
	struct line *l = get(sizeof *l);
	struct timeval limit = {.tv_sec = WAIT};
	if ((l->fd = dial(host, 0)) < 0)
		die("connect");
	setsockopt(l->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	return l;
}

static void line_close(struct line *l)
{
	close(l->fd);
	free(l);
}

/* ---- smtp */

enum { GREET, HELO, MAIL, RCPT, DATA, TEXT, QUIT };

struct client {
	int fd, state, number, left;
	struct client *next; /* begins when this one has been greeted: nobody comes with all at the same instant */
	uint64_t since;
	size_t have, sent; /* of the reply; of the message */
	char reply[4096];
};

static char *text;
static size_t text_length;
static int started, accepted, failed;
static uint64_t *times;

static int client_open;

static int client_start(struct client *c, int epoll)
{
	if (started == messages)
		return 0;
	c->number = started++;
	c->state = GREET;
	c->left = keep;
	c->have = c->sent = 0;
	c->since = now();
	if ((c->fd = dial(host, SOCK_NONBLOCK)) < 0)
		die("connect");
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e))
		die("epoll");
	return 1;
}

static void client_say(struct client *c, int state, const char *format, const char *a, int b)
{
	char line[512];
	int n = snprintf(line, sizeof line, format, b, a);
	all_put(c->fd, line, n);
	c->state = state;
}

static int client_text(struct client *c, int epoll) /* 1 when all is written */
{
	ssize_t w = write(c->fd, text + c->sent, text_length - c->sent);
	if (w < 0 && errno != EAGAIN)
		return -1;
	c->sent += w > 0 ? w : 0;
	struct epoll_event e = {.events = c->sent < text_length ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.ptr = c};
	epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
	return 0;
}

static int client_step(struct client *c, int code, int epoll) /* 0 when the connection has ended */
{
	static const int wanted[] = {[GREET] = 220, [HELO] = 250, [MAIL] = 250, [RCPT] = 250, [DATA] = 354, [TEXT] = 250};
	if (code != wanted[c->state]) {
		failed++;
		fprintf(stderr, "load: message %d in state %d: %.*s", c->number, c->state, (int)c->have, c->reply);
		return 0;
	}
	switch (c->state) {
	case GREET:
		if (c->next)
			client_open += client_start(c->next, epoll);
		c->next = NULL;
		client_say(c, HELO, "EHLO load.example\r\n", "", 0);
		break;
	case HELO: client_say(c, MAIL, "MAIL FROM:<sender@sink.example>\r\n", "", 0); break;
	case MAIL: client_say(c, RCPT, "RCPT TO:<u%d@%s>\r\n", domain, c->number % users); break;
	case RCPT: client_say(c, DATA, "DATA\r\n", "", 0); break;
	case DATA:
		c->state = TEXT;
		c->sent = 0;
		return client_text(c, epoll) < 0 ? (failed++, 0) : 1;
	case TEXT:
		times[accepted++] = now() - c->since;
		if (--c->left > 0 && started < messages) {
			c->number = started++;
			c->since = now();
			client_say(c, MAIL, "MAIL FROM:<sender@sink.example>\r\n", "", 0);
			break;
		}
		/* As Postfix does, the answer to QUIT is not waited for: Exim gives it 200 ms later. */
		client_say(c, QUIT, "QUIT\r\n", "", 0);
		return 0;
	}
	return 1;
}

static int client_read(struct client *c, int epoll)
{
	ssize_t n = read(c->fd, c->reply + c->have, sizeof c->reply - 1 - c->have);
	if (n < 0 && errno == EAGAIN)
		return 1;
	if (n <= 0) {
		failed++;
		return 0;
	}
	c->have += n;
	for (char *line = c->reply, *end; (end = memchr(line, '\n', c->reply + c->have - line)); line = end + 1)
		if (end - line > 3 && line[3] != '-') {
			int going = client_step(c, atoi(line), epoll);
			c->have = 0; /* no reply comes unasked */
			return going;
		}
	return c->have < sizeof c->reply - 1;
}

static int smtp(void)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	struct client *clients = get(connections * sizeof *clients);
	char *body = message("\r\n", &text_length);
	text = get(text_length + 4);
	memcpy(text, body, text_length);
	memcpy(text + text_length, ".\r\n", 3);
	text_length += 3;
	times = get(messages * sizeof *times);
	uint64_t began = now();
	for (int i = 0; i + 1 < connections; i++)
		clients[i].next = &clients[i + 1];
	client_open = client_start(&clients[0], epoll);
	while (client_open) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll, events, 64, WAIT * 1000);
		if (n <= 0)
			die("no answer from the server");
		for (int i = 0; i < n; i++) {
			struct client *c = events[i].data.ptr;
			int going = 1;
			if (events[i].events & EPOLLOUT && client_text(c, epoll) < 0)
				failed++, going = 0;
			if (going && events[i].events & ~EPOLLOUT)
				going = client_read(c, epoll);
			if (!going) {
				close(c->fd);
				client_open += client_start(c, epoll) - 1;
			}
		}
	}
	uint64_t end = now();
	printf("{\"began\": %.6f, \"seconds\": %.6f, \"messages\": %d, \"failed\": %d, ", began / 1e9, (end - began) / 1e9, accepted, failed);
	times_say(times, accepted);
	printf("}\n");
	return failed != 0;
}

/* ---- inject */

static void enter(void)
{
	if (root && (chroot(root) || chdir("/")))
		die("chroot");
}

static void become(void)
{
	if (uid >= 0 && (setgroups(0, NULL) || setgid(uid) || setuid(uid)))
		die("setuid");
}

static int inject(char **argv)
{
	extern char **environ;
	int fixed = 0, running = 0;
	char *body = message("\n", &text_length);
	while (argv[fixed])
		fixed++;
	char **full = get((fixed + 3 + recipients) * sizeof *full);
	memcpy(full, argv, fixed * sizeof *full);
	full[fixed] = "-f";
	full[fixed + 1] = "sender@sink.example";
	for (int i = 0; i < recipients; i++)
		full[fixed + 2 + i] = get(64);
	char path[64];
	sprintf(path, "/tmp/bench-message.%d", getpid());
	enter();
	unlink(path); /* of an earlier process with this number, in another namespace */
	int source = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
	if (source < 0 || write(source, body, text_length) != (ssize_t)text_length)
		die(path);
	if (uid >= 0 && fchown(source, uid, uid)) /* who unlinks it is the user */
		die(path);
	close(source);
	become();
	times = get(messages * sizeof *times);
	struct { pid_t pid; uint64_t since; } *slots = get(connections * sizeof *slots);
	uint64_t began = now(), end = began;
	while (started < messages || running) {
		while (running < connections && started < messages) {
			posix_spawn_file_actions_t actions;
			int slot = 0;
			while (slots[slot].pid)
				slot++;
			for (int i = 0; i < recipients; i++)
				if (hosts)
					sprintf(full[fixed + 2 + i], "r%d@h%d.sink.example", i, i % hosts + 1);
				else
					sprintf(full[fixed + 2 + i], "u%d@%s", started % users, domain);
			/* Opened anew: each from its beginning. */
			int fd = open(path, O_RDONLY);
			if (fd < 0)
				die(path);
			posix_spawn_file_actions_init(&actions);
			posix_spawn_file_actions_adddup2(&actions, fd, 0);
			posix_spawn_file_actions_addclose(&actions, fd);
			slots[slot].since = now();
			if ((errno = posix_spawn(&slots[slot].pid, full[0], &actions, NULL, full, environ)))
				die(full[0]);
			posix_spawn_file_actions_destroy(&actions);
			close(fd);
			started++;
			running++;
		}
		int status;
		pid_t pid = wait(&status);
		for (int i = 0; i < connections; i++)
			if (slots[i].pid == pid) {
				slots[i].pid = 0;
				running--;
				if (status)
					failed++;
				else {
					times[accepted++] = now() - slots[i].since;
					end = now();
				}
			}
	}
	unlink(path);
	printf("{\"began\": %.6f, \"seconds\": %.6f, \"messages\": %d, \"failed\": %d, \"cpu\": %.6f, \"forks\": %d, ", began / 1e9,
	       (end - began) / 1e9, accepted, failed, own_cpu(), messages);
	times_say(times, accepted);
	printf("}\n");
	return accepted == 0;
}

/* ---- watch, fresh */

static int arrivals(int fd, int limit) /* how many came in this wait; -1 when events were lost */
{
	static char events[BUFFER] __attribute__((aligned(8)));
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int came = 0;
	if (poll(&p, 1, limit) <= 0)
		return 0;
	ssize_t n = read(fd, events, sizeof events);
	for (char *at = events; at < events + n;) {
		struct inotify_event *e = (struct inotify_event *)at;
		if (e->mask & IN_Q_OVERFLOW)
			return -1;
		came++;
		at += sizeof *e + e->len;
	}
	return came;
}

static int observe(char **directories)
{
	int fd = inotify_init1(IN_CLOEXEC);
	for (; *directories; directories++)
		if (inotify_add_watch(fd, *directories, IN_CREATE | IN_MOVED_TO | IN_ONLYDIR) < 0)
			die(*directories);
	return fd;
}

static int watch(char **directories)
{
	int fd = observe(directories), seen = 0;
	uint64_t deadline = now() + seconds * 1000000000ull, first = 0, last = 0;
	printf("ready\n");
	fflush(stdout);
	while (seen < messages && now() < deadline) {
		int came = arrivals(fd, 100);
		if (came < 0) {
			fprintf(stderr, "load: too many files at once to be counted\n");
			return 111;
		}
		if (came) {
			last = now();
			first = first ? first : last;
			seen += came;
		}
	}
	printf("{\"messages\": %d, \"first\": %.6f, \"last\": %.6f}\n", seen, first / 1e9, last / 1e9);
	return seen < messages;
}

static int fresh(char **directories)
{
	int fd = observe(directories);
	char *body = message("\r\n", &text_length), line[512];
	uint64_t began = now();
	times = get(messages * sizeof *times);
	uint64_t *accept = get(messages * sizeof *accept);
	for (int i = 0; i < messages; i++) {
		static const int wanted[] = {220, 250, 250, 250, 354};
		const char *lines[] = {"EHLO load.example\r\n", "MAIL FROM:<sender@sink.example>\r\n", line, "DATA\r\n", NULL};
		uint64_t since = now();
		struct line *l = line_open();
		sprintf(line, "RCPT TO:<fresh@%s>\r\n", domain);
		for (int k = 0; k < 5; k++) {
			if (code_get(l) != wanted[k]) {
				fprintf(stderr, "load: message %d refused at step %d\n", i, k);
				return 111;
			}
			if (lines[k])
				all_put(l->fd, lines[k], strlen(lines[k]));
		}
		all_put(l->fd, body, text_length);
		all_put(l->fd, ".\r\n", 3);
		if (code_get(l) != 250) {
			fprintf(stderr, "load: message %d not accepted\n", i);
			return 111;
		}
		accept[i] = now() - since;
		all_put(l->fd, "QUIT\r\n", 6);
		line_close(l);
		if (arrivals(fd, WAIT * 1000) != 1) {
			fprintf(stderr, "load: message %d did not arrive once\n", i);
			return 111;
		}
		times[i] = now() - since;
	}
	printf("{\"began\": %.6f, \"seconds\": %.6f, \"messages\": %d, ", began / 1e9, (now() - began) / 1e9, messages);
	times_say(times, messages);
	qsort(accept, messages, sizeof *accept, by_size);
	printf(", \"accepted_ms\": %.3f}\n", accept[messages / 2] / 1e6);
	return 0;
}

/* ---- sink */

#define GONE ((size_t)-1)

enum { CONNECTIONS, OPEN, PEAK, MESSAGES, RECIPIENTS, BYTES, LAST, DEFERRED, DEFER, DELAY, COUNTERS };

struct peer {
	int fd, defers, refused, text, matched, closing; /* matched: how much of the end of a message was seen */
	unsigned generation;
	size_t line, have, ready;
	char command[16], buffer[BUFFER];
};

struct due {
	struct peer *peer;
	unsigned generation;
	size_t bytes; /* 0: the greeting; GONE: the other side has nothing more to say */
	uint64_t at;
	struct due *next;
};

static uint64_t *counters;

static void peer_close(struct peer *p)
{
	close(p->fd);
	p->fd = -1;
	p->generation++;
	counters[OPEN]--;
}

/* Looks at bytes that have come; answers go out together. */
static void peer_take(struct peer *p, const char *data, size_t n)
{
	static const char end[] = "\r\n.\r\n";
	char *out = get(n * 16 + 256), *at = out;
	for (size_t i = 0; i < n && !p->closing; i++) {
		char c = data[i];
		if (p->text) {
			p->matched = c == end[p->matched] ? p->matched + 1 : c == '\r';
			if (p->matched == 5) {
				p->text = 0;
				p->line = 0;
				counters[MESSAGES]++;
				counters[LAST] = now();
				at = stpcpy(at, "250 ok\r\n");
			}
			continue;
		}
		if (c != '\n') {
			if (p->line < sizeof p->command - 1)
				p->command[p->line] = c;
			p->line++;
			continue;
		}
		p->command[p->line < sizeof p->command - 1 ? p->line : sizeof p->command - 1] = 0;
		p->line = 0;
		if (!strncasecmp(p->command, "EHLO", 4))
			at = stpcpy(at, "250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n");
		else if (!strncasecmp(p->command, "RCPT", 4)) {
			p->refused = p->defers && counters[DEFER];
			counters[p->refused ? DEFERRED : RECIPIENTS]++;
			at = stpcpy(at, p->refused ? "450 later\r\n" : "250 ok\r\n");
		} else if (!strncasecmp(p->command, "DATA", 4)) {
			p->text = !p->refused;
			p->matched = 2; /* the line before has ended */
			at = stpcpy(at, p->refused ? "503 to whom\r\n" : "354 go\r\n");
		} else if (!strncasecmp(p->command, "QUIT", 4)) {
			at = stpcpy(at, "221 bye\r\n");
			p->closing = 1;
		} else if (!strncasecmp(p->command, "HELO", 4) || !strncasecmp(p->command, "MAIL", 4) ||
			   !strncasecmp(p->command, "RSET", 4) || !strncasecmp(p->command, "NOOP", 4))
			at = stpcpy(at, "250 ok\r\n");
		else
			at = stpcpy(at, "500 what\r\n");
	}
	if (at > out && write(p->fd, out, at - out) != at - out)
		p->closing = 1;
	free(out);
}

static void peer_ready(struct peer *p, size_t bytes)
{
	if (bytes == GONE)
		p->closing = 1;
	else if (!bytes) {
		if (write(p->fd, "220 sink ESMTP\r\n", 16) != 16)
			p->closing = 1;
	} else {
		peer_take(p, p->buffer, bytes);
		memmove(p->buffer, p->buffer + bytes, p->have - bytes);
		p->have -= bytes;
	}
	if (p->closing)
		peer_close(p);
}

static _Noreturn void sink(const char *counter_file)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC), file = open(counter_file, O_RDWR | O_CREAT, 0644);
	if (file < 0 || ftruncate(file, COUNTERS * sizeof *counters))
		die(counter_file);
	counters = mmap(NULL, COUNTERS * sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (counters == MAP_FAILED)
		die(counter_file);
	int listeners[SINK_HOSTS + 1], one = 1;
	for (int i = 0; i <= SINK_HOSTS; i++) {
		struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
		at.sin_addr.s_addr = htonl(i < SINK_HOSTS ? 0x7f000101 + i : 0x7f000201);
		listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		setsockopt(listeners[i], SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
		if (bind(listeners[i], (struct sockaddr *)&at, sizeof at) || listen(listeners[i], 1024))
			die("listen");
		struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)i * 2 + 1}; /* odd: no pointer */
		epoll_ctl(epoll, EPOLL_CTL_ADD, listeners[i], &e);
	}
	printf("ready\n");
	fflush(stdout);
	struct due *head = NULL, **tail = &head;
	struct peer **pool = NULL;
	size_t pool_size = 0;
	for (;;) {
		struct epoll_event events[256];
		int wait = -1;
		if (head) {
			uint64_t t = now();
			wait = head->at > t ? (head->at - t + 999999) / 1000000 : 0;
		}
		int n = epoll_wait(epoll, events, 256, wait);
		for (int i = 0; i < n; i++) {
			struct peer *p = NULL;
			size_t bytes = 0;
			if (events[i].data.u64 & 1) {
				int which = events[i].data.u64 / 2, fd = accept4(listeners[which], NULL, NULL, SOCK_NONBLOCK);
				if (fd < 0)
					continue;
				for (size_t k = 0; k < pool_size && !p; k++)
					p = pool[k]->fd < 0 ? pool[k] : NULL;
				if (!p) {
					pool = realloc(pool, (pool_size + 1) * sizeof *pool);
					p = pool[pool_size++] = get(sizeof *p);
				}
				unsigned generation = p->generation;
				memset(p, 0, offsetof(struct peer, buffer));
				p->generation = generation;
				p->fd = fd;
				p->defers = which == SINK_HOSTS;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				struct epoll_event e = {.events = EPOLLIN, .data.ptr = p};
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
				counters[CONNECTIONS]++;
				if (++counters[OPEN] > counters[PEAK])
					counters[PEAK] = counters[OPEN];
			} else {
				p = events[i].data.ptr;
				if (p->fd < 0 || p->have == sizeof p->buffer)
					continue; /* full: what is due will make room */
				ssize_t got = read(p->fd, p->buffer + p->have, sizeof p->buffer - p->have);
				if (got < 0 && errno == EAGAIN)
					continue;
				if (got <= 0) {
					epoll_ctl(epoll, EPOLL_CTL_DEL, p->fd, NULL);
					bytes = GONE;
				} else {
					bytes = got;
					p->have += got;
					counters[BYTES] += got;
				}
			}
			if (!counters[DELAY]) {
				peer_ready(p, bytes);
				continue;
			}
			struct due *d = get(sizeof *d);
			*d = (struct due){p, p->generation, bytes, now() + counters[DELAY] * 1000000ull, NULL};
			*tail = d;
			tail = &d->next;
		}
		while (head && head->at <= now()) {
			struct due *d = head;
			head = d->next;
			tail = head ? tail : &head;
			if (d->peer->generation == d->generation && d->peer->fd >= 0)
				peer_ready(d->peer, d->bytes);
			free(d);
		}
	}
}

/* ---- pop */

static int pop(void)
{
	char command[512];
	size_t n, bytes = 0;
	char *s;
	struct line *l = line_open();
#define SAY(...) all_put(l->fd, command, sprintf(command, __VA_ARGS__))
#define OK (s = line_get(l, &n), s && n && *s == '+')
	if (!OK)
		die("greeting");
	uint64_t began = now();
	SAY("USER %s\r\n", domain);
	if (!OK)
		die("USER");
	SAY("PASS %s\r\n", password);
	if (!OK)
		die("PASS");
	uint64_t in = now();
	SAY("STAT\r\n");
	if (!OK)
		die("STAT");
	int count = atoi(s + 4);
	for (int which = 0; which < 2; which++) {
		SAY(which ? "UIDL\r\n" : "LIST\r\n");
		if (!OK)
			die("LIST");
		while ((s = line_get(l, &n)) && !(n >= 1 && s[0] == '.'))
			;
	}
	uint64_t listed = now();
	for (int i = 1; i <= count; i++) {
		SAY("RETR %d\r\n", i);
		if (!OK)
			die("RETR");
		while ((s = line_get(l, &n)) && !(s[0] == '.' && (n == 1 || (n == 2 && s[1] == '\r'))))
			bytes += n + 1;
		if (!s)
			die("RETR");
		SAY("DELE %d\r\n", i);
		if (!OK)
			die("DELE");
	}
	uint64_t read = now();
	SAY("QUIT\r\n");
	if (!OK)
		die("QUIT");
	uint64_t end = now();
	printf("{\"began\": %.6f, \"seconds\": %.6f, \"messages\": %d, \"bytes\": %zu, \"login\": %.6f, \"list\": %.6f, \"read\": %.6f, \"quit\": %.6f}\n",
	       began / 1e9, (end - began) / 1e9, count, bytes, (in - began) / 1e9, (listed - in) / 1e9, (read - listed) / 1e9, (end - read) / 1e9);
	return 0;
}

/* ---- idle */

static int idle(void)
{
	struct line **lines = get(connections * sizeof *lines);
	struct timeval limit = {.tv_sec = 5};
	char c;
	int served = 0, refused = 0;
	for (int i = 0; i < connections; i++) {
		lines[i] = line_open();
		setsockopt(lines[i]->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
		if (refused < 3 && code_get(lines[i]) == 220) { /* after three in vain no other is waited for */
			all_put(lines[i]->fd, "EHLO load.example\r\n", 19);
			served += code_get(lines[i]) == 250;
		} else
			refused++;
	}
	printf("ready\n");
	fflush(stdout);
	if (read(0, &c, 1) < 0)
		die("standard input");
	int ended = 0;
	for (int i = 0; i < connections; i++) {
		if (i < served && send(lines[i]->fd, "QUIT\r\n", 6, MSG_NOSIGNAL) == 6)
			ended += code_get(lines[i]) == 221;
		line_close(lines[i]);
	}
	printf("{\"served\": %d, \"ended\": %d}\n", served, ended);
	return 0;
}

/* ---- start */

static int start(char **argv)
{
	extern char **environ;
	int null = open("/dev/null", O_RDWR), code = 0;
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	for (int i = 0; i < 3; i++)
		posix_spawn_file_actions_adddup2(&actions, null, i);
	enter();
	become();
	times = get(messages * sizeof *times);
	for (int i = 0; i < messages; i++) {
		pid_t pid;
		uint64_t since = now();
		if ((errno = posix_spawn(&pid, argv[0], &actions, NULL, argv, environ)))
			die(argv[0]);
		waitpid(pid, &code, 0);
		times[i] = now() - since;
	}
	printf("{\"code\": %d, ", WIFEXITED(code) ? WEXITSTATUS(code) : -WTERMSIG(code));
	times_say(times, messages);
	printf("}\n");
	return 0;
}

/* ---- raw */

static void raw_writer(const char *directory, int which, int count)
{
	char from[512], to[512];
	char *body = message("\n", &text_length);
	int dir = open(directory, O_RDONLY | O_DIRECTORY);
	for (int i = 0; i < count; i++) {
		snprintf(from, sizeof from, "%s/t%d.%d", directory, which, i);
		snprintf(to, sizeof to, "%s/m%d.%d", directory, which, i);
		int fd = open(from, O_WRONLY | O_CREAT | O_EXCL, 0644);
		if (fd < 0 || write(fd, body, text_length) != (ssize_t)text_length || fsync(fd) || close(fd) || rename(from, to) || fsync(dir))
			_exit(111);
	}
	_exit(0);
}

static int raw(const char *directory)
{
	int status;
	uint64_t began = now();
	for (int i = 0; i < connections; i++) {
		pid_t pid = fork();
		if (pid < 0)
			die("fork");
		if (!pid)
			raw_writer(directory, i, messages / connections);
	}
	while (wait(&status) > 0)
		failed += status != 0;
	int done = messages / connections * connections;
	printf("{\"began\": %.6f, \"seconds\": %.6f, \"messages\": %d, \"failed\": %d, \"forks\": %d}\n", began / 1e9, (now() - began) / 1e9, done,
	       failed, connections);
	return failed != 0;
}

int main(int argc, char **argv)
{
	int option;
	struct rlimit files;
	const char *what = argc > 1 ? argv[1] : "";
	if (argc > 1) {
		argc--;
		argv++;
	}
	while ((option = getopt(argc, argv, "+h:p:c:m:l:u:d:k:r:H:R:U:t:P:")) != -1)
		switch (option) {
		case 'h': host = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'c': connections = atoi(optarg); break;
		case 'm': messages = atoi(optarg); break;
		case 'l': size = atoi(optarg); break;
		case 'u': users = atoi(optarg); break;
		case 'd': domain = optarg; break;
		case 'k': keep = atoi(optarg); break;
		case 'r': recipients = atoi(optarg); break;
		case 'H': hosts = atoi(optarg); break;
		case 'R': root = optarg; break;
		case 'U': uid = atoi(optarg); break;
		case 't': seconds = atoi(optarg); break;
		case 'P': password = optarg; break;
		default: return 100;
		}
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	if (strcmp(what, "inject") && strcmp(what, "start")) { /* what is measured inherits nothing of this */
		setrlimit(RLIMIT_NOFILE, &files);
		signal(SIGPIPE, SIG_IGN);
	}
	argv += optind;
	if (!strcmp(what, "smtp"))
		return smtp();
	if (!strcmp(what, "idle"))
		return idle();
	if (!strcmp(what, "pop"))
		return pop();
	if (*argv) {
		if (!strcmp(what, "inject"))
			return inject(argv);
		if (!strcmp(what, "fresh"))
			return fresh(argv);
		if (!strcmp(what, "watch"))
			return watch(argv);
		if (!strcmp(what, "sink"))
			sink(*argv);
		if (!strcmp(what, "start"))
			return start(argv);
		if (!strcmp(what, "raw"))
			return raw(*argv);
	}
	fprintf(stderr, "load: usage: see the head of tests/bench/load.c\n");
	return 100;
}
