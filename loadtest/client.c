/* The load client: threads with blocking sockets, which send requests that were made before and check each reply.

   It knows no protocol beyond where a reply ends, so that it costs the same whichever server it drives. A reply is
   received where it stays: its head and its payload into one buffer a connection, in as few calls as the kernel allows.

   Usage: client [OPTION VALUE]... PLAN
     --port N          of 127.0.0.1
     --connections N   with one request in flight each (1)
     --threads N       that share the connections out (as many); one with several sends on all of them before it waits
                       for the first, so that it rarely sleeps. Requests and replies must then fit into socket buffers
     --seconds S       how long; every connection does two exchanges at least, and the first is not timed (1)
     --once 1          instead: each request of the plan once, all of them timed
     --body N          bytes sent after the request: the first N of the pattern
     --tail TEXT       sent after the body
     --reply KIND      http (head, and as much as Content-Length says), head (an HTTP head alone), or a number of bytes
     --expect TEXT     what each reply begins with
     --payload N       bytes in each reply that must be the pattern's first N; both ends of them are compared
     --trailing N      bytes of a reply behind its payload
   PLAN is a file of requests, each behind its length as a native uint32. Connection i of n sends requests i, i+n, ...,
   and begins again at the end of the file.

   Prints one JSON object. The first reply that is not as expected, and any broken connection, ends the program with
   status 1 and one line on standard error. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_ROOM = 1 << 20, SAMPLE = 64, MAX_CONNECTIONS = 4096, MAX_LATENCIES = 1 << 22 };
enum { REPLY_HTTP = -1, REPLY_HEAD = -2 };

static struct {
    int port, connections, threads, once;
    double seconds;
    size_t body, payload, trailing;
    const char *tail, *expect;
    long long reply;
} option = {.connections = 1, .seconds = 1, .tail = "", .expect = "", .reply = REPLY_HTTP};

struct request { const char *bytes; uint32_t nbytes; };
static struct request *requests;
static size_t request_count;
static char *pattern;
static pthread_barrier_t begin_barrier;

struct connection {
    int sock, in_flight;
    char *reply;
    size_t next;
    double sent;
};

struct worker {
    pthread_t thread;
    struct connection *connections;
    int count;
    size_t exchanges, received, latency_count, latency_room;
    float *latencies;
    double end;
};

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("client: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    _exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void make_pattern(size_t nbytes) {
    uint64_t state = 1;
    pattern = malloc(nbytes + 8);
    if (!pattern) die("no memory for a body of %zu bytes", nbytes);
    for (size_t at = 0; at < nbytes; at += 8) { /* splitmix64 */
        uint64_t z = (state += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        memcpy(pattern + at, &z, 8);
    }
}

static void read_plan(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat status;
    if (fd < 0 || fstat(fd, &status)) die("cannot read %s: %s", path, strerror(errno));
    const char *file = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (file == MAP_FAILED) die("cannot map %s: %s", path, strerror(errno));
    size_t room = 0;
    for (off_t at = 0; at < status.st_size;) {
        if (request_count == room) {
            requests = realloc(requests, (room = room ? 2 * room : 1024) * sizeof *requests);
            if (!requests) die("no memory for the plan");
        }
        struct request *request = &requests[request_count++];
        memcpy(&request->nbytes, file + at, 4);
        request->bytes = file + at + 4;
        at += 4 + (off_t)request->nbytes;
        if (at > status.st_size) die("%s is cut off", path);
    }
    if (!request_count) die("%s holds no request", path);
}

static int open_connection(void) {
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(option.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (sock < 0) die("no socket: %s", strerror(errno));
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(sock, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* where it is refused, the system's choice holds */
    if (connect(sock, (struct sockaddr *)&address, sizeof address)) die("no connection: %s", strerror(errno));
    return sock;
}

static void send_request(struct connection *c) {
    const struct request *request = &requests[c->next % request_count];
    struct iovec parts[3] = {
        {(void *)request->bytes, request->nbytes}, {pattern, option.body}, {(void *)option.tail, strlen(option.tail)}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    while (message.msg_iovlen) {
        ssize_t sent = sendmsg(c->sock, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) {
            /* a server that refuses a body answers first and hangs up then: its answer says more */
            ssize_t got = recv(c->sock, c->reply, 200, 0);
            die("the connection broke while sending: %s; %.*s", strerror(errno), got > 0 ? (int)got : 0, c->reply);
        }
        while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= sent;
        }
    }
}

/* The bytes of the whole reply when the first `got` of them are here; 0 when these do not say it yet. */
static size_t reply_nbytes(struct connection *c, size_t got) {
    if (option.reply >= 0) return option.reply;
    char *end = memmem(c->reply, got < HEAD_ROOM ? got : HEAD_ROOM, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = end + 4 - c->reply;
    if (option.reply == REPLY_HEAD) return head;
    for (char *line = c->reply; line < end; line = (char *)memchr(line, '\n', end + 2 - line) + 1)
        if (!strncasecmp(line, "content-length:", 15)) return head + strtoull(line + 15, NULL, 10);
    if (!memcmp(c->reply + 8, " 204", 4)) return head;
    die("a reply without Content-Length: %.*s", (int)(end - c->reply), c->reply);
    return 0;
}

static size_t receive_reply(struct connection *c) {
    size_t room = HEAD_ROOM + option.payload, got = 0, whole = option.reply >= 0 ? option.reply : 0;
    while (!whole || got < whole) {
        size_t wanted = (whole ? whole : room) - got;
        ssize_t received = recv(c->sock, c->reply + got, wanted, whole ? MSG_WAITALL : 0);
        if (received < 0 && errno == EINTR) continue;
        if (received < 0) die("the connection broke while receiving: %s", strerror(errno));
        if (!received) die("the server hung up after %zu of %zu bytes", got, whole);
        if (!got) {
            size_t known = strlen(option.expect);
            if (memcmp(c->reply, option.expect, known < (size_t)received ? known : (size_t)received)) {
                ssize_t more = recv(c->sock, c->reply + received, 1000, MSG_DONTWAIT);
                received += more > 0 ? more : 0;
                die("not the reply that was expected: %.*s", (int)(received < 1000 ? received : 1000), c->reply);
            }
        }
        got += received;
        if (!whole && (whole = reply_nbytes(c, got)) > room) die("a reply of %zu bytes is longer than expected", whole);
    }
    if (got != whole) die("%zu bytes more than the reply", got - whole);
    if (option.payload) {
        size_t sample = option.payload < SAMPLE ? option.payload : SAMPLE;
        char *payload = c->reply + whole - option.trailing - option.payload;
        if (whole < option.payload + option.trailing || memcmp(payload, pattern, sample) ||
            memcmp(payload + option.payload - sample, pattern + option.payload - sample, sample))
            die("a reply with other bytes than were stored");
    }
    c->next += option.connections;
    return whole;
}

static void keep_latency(struct worker *w, double seconds) {
    if (w->latency_count == w->latency_room) {
        if (w->latency_room >= MAX_LATENCIES) return;
        w->latencies = realloc(w->latencies, (w->latency_room = 2 * w->latency_room + 1024) * sizeof *w->latencies);
        if (!w->latencies) die("no memory for latencies");
    }
    w->latencies[w->latency_count++] = seconds * 1e6;
}

static void begin(struct connection *c, double at) {
    c->sent = at;
    c->in_flight = 1;
    send_request(c);
}

static void *work(void *argument) {
    struct worker *w = argument;
    if (!option.once)
        for (int i = 0; i < w->count; i++) {
            send_request(&w->connections[i]);
            receive_reply(&w->connections[i]);
        }
    pthread_barrier_wait(&begin_barrier);
    double at = now(), deadline = at + option.seconds;
    int in_flight = 0;
    for (int i = 0; i < w->count; i++)
        if (!option.once || w->connections[i].next < request_count) {
            begin(&w->connections[i], now());
            in_flight++;
        }
    while (in_flight)
        for (int i = 0; i < w->count; i++) {
            struct connection *c = &w->connections[i];
            if (!c->in_flight) continue;
            w->received += receive_reply(c);
            at = now();
            keep_latency(w, at - c->sent);
            w->exchanges++;
            if (option.once ? c->next < request_count : at < deadline) begin(c, at);
            else {
                c->in_flight = 0;
                in_flight--;
            }
        }
    w->end = at;
    return NULL;
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void read_options(int count, char **words) {
    int at = 1;
    for (; at + 1 < count && !strncmp(words[at], "--", 2); at += 2) {
        const char *name = words[at] + 2, *value = words[at + 1];
        if (!strcmp(name, "port")) option.port = atoi(value);
        else if (!strcmp(name, "connections")) option.connections = atoi(value);
        else if (!strcmp(name, "threads")) option.threads = atoi(value);
        else if (!strcmp(name, "seconds")) option.seconds = atof(value);
        else if (!strcmp(name, "once")) option.once = atoi(value);
        else if (!strcmp(name, "body")) option.body = strtoull(value, NULL, 10);
        else if (!strcmp(name, "tail")) option.tail = value;
        else if (!strcmp(name, "expect")) option.expect = value;
        else if (!strcmp(name, "payload")) option.payload = strtoull(value, NULL, 10);
        else if (!strcmp(name, "trailing")) option.trailing = strtoull(value, NULL, 10);
        else if (!strcmp(name, "reply"))
            option.reply = !strcmp(value, "http") ? REPLY_HTTP : !strcmp(value, "head") ? REPLY_HEAD : atoll(value);
        else die("no option --%s", name);
    }
    if (at + 1 != count) die("one PLAN is wanted behind the options; the head of client.c says which there are");
    if (option.connections < 1 || option.connections > MAX_CONNECTIONS) die("1 to %d connections", MAX_CONNECTIONS);
    if (option.threads < 1 || option.threads > option.connections) option.threads = option.connections;
    if (option.reply > (long long)(HEAD_ROOM + option.payload)) die("--reply is more than --payload and a head");
    read_plan(words[at]);
}

int main(int count, char **words) {
    read_options(count, words);
    make_pattern(option.body > option.payload ? option.body : option.payload);
    struct connection *connections = calloc(option.connections, sizeof *connections);
    struct worker *workers = calloc(option.threads, sizeof *workers);
    pthread_barrier_init(&begin_barrier, NULL, option.threads + 1);
    for (int i = 0; i < option.connections; i++) {
        struct connection *c = &connections[i];
        size_t room = HEAD_ROOM + option.payload;
        c->next = i;
        c->sock = open_connection();
        c->reply = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (c->reply == MAP_FAILED) die("no memory for %d replies of %zu bytes", option.connections, room);
    }
    for (int i = 0, first = 0; i < option.threads; i++) {
        struct worker *w = &workers[i];
        w->connections = connections + first;
        w->count = option.connections / option.threads + (i < option.connections % option.threads);
        first += w->count;
        if (pthread_create(&w->thread, NULL, work, w)) die("no thread");
    }
    pthread_barrier_wait(&begin_barrier);
    double began = now(), cpu_before = cpu_s(), end = began;
    size_t exchanges = 0, received = 0, latency_count = 0;
    for (int i = 0; i < option.threads; i++) {
        pthread_join(workers[i].thread, NULL);
        exchanges += workers[i].exchanges;
        received += workers[i].received;
        latency_count += workers[i].latency_count;
        if (workers[i].end > end) end = workers[i].end;
    }
    double cpu = cpu_s() - cpu_before;
    float *all = malloc((latency_count + 1) * sizeof *all);
    if (!all) die("no memory for latencies");
    size_t at = 0;
    for (int i = 0; i < option.threads; i++) {
        memcpy(all + at, workers[i].latencies, workers[i].latency_count * sizeof *all);
        at += workers[i].latency_count;
    }
    qsort(all, latency_count, sizeof *all, by_size);
    printf("{\"exchanges\": %zu, \"untimed\": %d, \"received_nbytes\": %zu, \"wall_s\": %.9f, \"cpu_s\": %.6f, "
           "\"p50_us\": %.2f, \"p99_us\": %.2f}\n",
           exchanges, option.once ? 0 : option.connections, received, end - began, cpu,
           latency_count ? all[latency_count / 2] : 0.0f, latency_count ? all[latency_count * 99 / 100] : 0.0f);
    return 0;
}
