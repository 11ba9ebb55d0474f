// The plane: threads that own plain connections between requests, and answer HEAD and GET of the objects in its table.
//
// It only ever says yes. Whatever it is not sure of, a header, a signature or an object that it does not know, it hands
// over: the connection, with what has been read of it, is Python's then.
//
// 1. A connection is used by its thread alone. It is the plane's from `plane_adopt` until it is closed or handed over.
// 2. While an answer is under way nothing is read, and the object has this connection for a reader.
// 3. No byte of a body leaves before its block has been verified. A connection is handed over only where nothing of an
//    answer has left; later it is cut.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "authenticate.h"
#include "objects.h"

#define LATENCY_BUCKETS 15 // and one for what takes longer

struct plane_options {
    unsigned threads;
    const struct credentials *credentials;
    const struct text *domains; // lower case: a host below one of them names a bucket
    size_t domain_count;
    uint32_t max_header;
    double idle_timeout_s, header_timeout_s, body_timeout_s, min_rate;
    uint64_t first_request_id, seed;
    uint64_t latency_buckets_ns[LATENCY_BUCKETS];
};

enum operation { GET_OBJECT, HEAD_OBJECT, OPERATION_COUNT };
enum late { LATE_REQUEST, LATE_HEAD, LATE_BODY, LATE_COUNT };

struct plane_counts {
    uint64_t answers[OPERATION_COUNT][2]; // 200 and 206
    uint64_t latencies[OPERATION_COUNT][LATENCY_BUCKETS + 1];
    uint64_t nanoseconds[OPERATION_COUNT]; // of all latencies together
    uint64_t sent_bytes, late[LATE_COUNT];
};

// A connection that is Python's again, and what has been read of it. Linked; `received` is a part of the allocation.
struct handed {
    struct handed *next;
    int fd, listener;
    uint32_t nbytes;
    char received[];
};

struct plane;

// Start the threads; what `options` points to must outlive the plane. NULL with errno set.
struct plane *plane_new(const struct plane_options *options);

// Readable when plane_handed, objects_released or objects_corrupt has something.
int plane_fd(struct plane *plane);

struct objects *plane_objects(struct plane *plane);

// Own a non-blocking socket that waits for its next request. 0, or -1 with errno set: then it is still the caller's.
//
// exact: whether all bytes of a range must be there
int plane_adopt(struct plane *plane, int fd, int listener, int exact);

// The connections handed over since the last call, in their order; the caller's to free. Ends what plane_fd told: the
// caller then asks for what was released or corrupt too.
struct handed *plane_handed(struct plane *plane);

size_t plane_connections(struct plane *plane);

void plane_counts(struct plane *plane, struct plane_counts *counts);

// Close idle connections now, and the others with their next answer.
void plane_drain(struct plane *plane);

// End the threads, and cut what is left. Blocks until they have ended.
void plane_stop(struct plane *plane);

// After plane_stop.
void plane_free(struct plane *plane, void (*let_go)(struct object *));
