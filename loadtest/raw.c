/* The limit: the same exchanges over bare TCP, with a thread a connection and nothing between the socket and memory.

   Usage: raw PORT SLOTS SLOT_NBYTES
   A request is 16 bytes of ASCII: G (get) or P (put), three digits of slot, twelve digits of length. G is answered with
   that many bytes of the slot. P is followed by them, and answered with K once they lie in the slot. Slots are as many
   as the objects of the other servers, so that all have the same bytes to move through the caches. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char *memory;
static size_t slots, slot_nbytes;

static int receive(int sock, char *into, size_t nbytes) {
    while (nbytes) {
        ssize_t received = recv(sock, into, nbytes, MSG_WAITALL);
        if (received < 0 && errno == EINTR) continue;
        if (received <= 0) return 0;
        into += received;
        nbytes -= received;
    }
    return 1;
}

static int send_all(int sock, const char *from, size_t nbytes) {
    while (nbytes) {
        ssize_t sent = send(sock, from, nbytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return 0;
        from += sent;
        nbytes -= sent;
    }
    return 1;
}

static void *serve(void *argument) {
    int sock = (int)(intptr_t)argument;
    char request[17] = {0};
    while (receive(sock, request, 16)) {
        size_t nbytes = strtoull(request + 4, NULL, 10), slot = 0;
        for (int i = 1; i < 4; i++) slot = 10 * slot + (request[i] - '0');
        if (slot >= slots || nbytes > slot_nbytes) break;
        char *at = memory + slot * slot_nbytes;
        if (request[0] == 'G' ? !send_all(sock, at, nbytes) : !receive(sock, at, nbytes) || !send_all(sock, "K", 1)) break;
    }
    close(sock);
    return NULL;
}

int main(int count, char **words) {
    if (count != 4) return fputs("usage: raw PORT SLOTS SLOT_NBYTES\n", stderr), 2;
    slots = strtoull(words[2], NULL, 10);
    slot_nbytes = strtoull(words[3], NULL, 10);
    memory = mmap(NULL, slots * slot_nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* accepted sockets inherit it */
    if (memory == MAP_FAILED || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        return perror("raw"), 1;
    for (;;) {
        int sock = accept(listener, NULL, NULL);
        pthread_t thread;
        if (sock < 0) continue;
        setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)sock)) close(sock);
        else pthread_detach(thread);
    }
}
