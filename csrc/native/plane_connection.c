#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "plane_inside.h"

void count_answer(struct plane_counts *counts, const struct plane_options *options, const struct connection *connection)
{
    if (connection->operation == UNCOUNTED)
        return;
    uint64_t took_ns = clock_ns(CLOCK_MONOTONIC) - connection->began_ns;
    int bucket = 0;
    while (bucket < LATENCY_BUCKETS && took_ns > options->latency_buckets_ns[bucket])
        bucket++;
    count(&counts->answers[connection->operation][connection->partial], 1);
    count(&counts->latencies[connection->operation][bucket], 1);
    count(&counts->nanoseconds[connection->operation], took_ns);
}

void unlink_connection(struct thread *thread, struct connection *connection)
{
    if (connection->next)
        connection->next->previous = connection->previous;
    if (connection->previous)
        connection->previous->next = connection->next;
    else
        thread->connections = connection->next;
    __atomic_store_n(&thread->connection_count, thread->connection_count - 1, __ATOMIC_RELAXED);
}

// Give up what the connection holds besides its socket.
static void forget_connection(struct thread *thread, struct connection *connection, int locked)
{
    if (connection->state == ANSWERING)
        count_answer(&thread->counts, &thread->plane->options, connection);
    if (connection->object)
        objects_leave(thread->plane->objects, connection->object);
    if (connection->put)
        leave_put(thread->plane, connection->put);
    if (connection->head_is_own)
        free(connection->head);
    if (!locked)
        pthread_mutex_lock(&thread->lock);
    unlink_connection(thread, connection);
    if (!locked)
        pthread_mutex_unlock(&thread->lock);
    free(connection->kept);
    free(connection);
}

void close_connection(struct thread *thread, struct connection *connection, int locked)
{
    if (connection->object)
        setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    int fd = connection->fd;
    forget_connection(thread, connection, locked);
    close(fd);
}

void watch(struct thread *thread, struct connection *connection, uint32_t interest)
{
    if (connection->interest == interest)
        return;
    connection->interest = interest;
    struct epoll_event event = {.events = interest, .data.ptr = connection};
    epoll_ctl(thread->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

struct handed *release_connection(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    struct handed *handed = malloc(sizeof *handed + nbytes);
    if (!handed) {
        close_connection(thread, connection, 0);
        return NULL;
    }
    *handed = (struct handed){.fd = connection->fd, .listener = connection->listener, .nbytes = (uint32_t)nbytes};
    memcpy(handed->received, data, nbytes);
    forget_connection(thread, connection, 0);
    return handed;
}

void hand_over(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    struct plane *plane = thread->plane;
    epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    struct handed *handed = release_connection(thread, connection, data, nbytes);
    if (!handed)
        return;
    pthread_mutex_lock(&plane->news_lock);
    int first = !plane->handed;
    *plane->handed_end = handed;
    plane->handed_end = &handed->next;
    pthread_mutex_unlock(&plane->news_lock);
    if (first)
        eventfd_write(plane->signal_fd, 1);
}

int keep(struct thread *thread, struct connection *connection, const char *data, size_t nbytes)
{
    if (!nbytes)
        return 1;
    if (!connection->kept && !(connection->kept = malloc(nbytes))) {
        close_connection(thread, connection, 0);
        return 0;
    }
    memcpy(connection->kept, data, nbytes);
    connection->kept_nbytes = (uint32_t)nbytes;
    return 1;
}
