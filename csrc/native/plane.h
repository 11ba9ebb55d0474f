// The plane: threads that own plain connections between requests, answer HEAD and GET of the objects in its table, and
// receive the bodies of PUTs into memory that Python gives them.
//
// It only ever says yes. Whatever it is not sure of, a header, a signature or an object that it does not know, it hands
// over: the connection, with what has been read of it, is Python's then.
//
// 1. A connection is used by its thread alone; by the event loop's alone from when that is told of a PUT until it has said
//    what becomes of it, and again when its body has come. It is the plane's from `plane_adopt` until it is closed or
//    handed over.
// 2. While an answer is under way nothing is read, and the object has this connection for a reader.
// 3. No byte of a body leaves before its block has been verified. A connection is handed over only where nothing of an
//    answer has left and nothing of a body is in its place; later it is cut.
// 4. The memory for a body is written to from `plane_receive` until `plane_received` has told of its end, or until the
//    threads have ended.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "authenticate.h"
#include "body.h"
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

enum operation { GET_OBJECT, HEAD_OBJECT, PUT_OBJECT, OPERATION_COUNT, UNCOUNTED = OPERATION_COUNT };
enum late { LATE_REQUEST, LATE_HEAD, LATE_BODY, LATE_COUNT };

struct plane_counts {
    uint64_t answers[OPERATION_COUNT][2]; // 200 and 206
    uint64_t latencies[OPERATION_COUNT][LATENCY_BUCKETS + 1];
    uint64_t nanoseconds[OPERATION_COUNT]; // of all latencies together
    uint64_t sent_bytes, received_bytes, late[LATE_COUNT];
};

// A connection that is Python's again, and what has been read of it. Linked; `received` is a part of the allocation.
struct handed {
    struct handed *next;
    int fd, listener;
    uint32_t nbytes;
    char received[];
};

// A PUT that Python is asked about. Texts lie in the allocation; `at` is NULL for a header that did not come.
struct put {
    struct put *next;
    struct connection *connection;
    int fd; // of the connection, which names it
    uint32_t tenant;
    struct text path, content_type, checksum; // checksum: of x-amz-checksum-crc64nvme
    uint64_t nbytes;
    int expects; // whether the peer waits to be told that it may send the body

    // Once it is to be received: where to, and how far that has come.
    struct areas areas; // `at` was allocated
    struct block_digest digest;
    void *held; // what the event loop's thread holds the memory and the digest by
    uint64_t received;
    int stopped; // why no more came: 0 it is whole, BODY_ENDED, BODY_LATE, or an errno

    uint32_t head_nbytes, data_nbytes;
    char data[]; // what has been read of it, from its head on, and behind it
};

#define BODY_LATE (-2) // it came too slowly

struct plane;

// Start the threads; what `options` points to must outlive the plane. NULL with errno set.
struct plane *plane_new(const struct plane_options *options);

// Readable when plane_handed, plane_asked, plane_received, objects_released or objects_corrupt has something.
int plane_fd(struct plane *plane);

struct objects *plane_objects(struct plane *plane);

// Own a non-blocking socket that waits for its next request. 0, or -1 with errno set: then it is still the caller's.
//
// exact: whether all bytes of a range must be there
int plane_adopt(struct plane *plane, int fd, int listener, int exact);

// The connections handed over since the last call, in their order; the caller's to free. Ends what plane_fd told: the
// caller then asks for everything else too.
struct handed *plane_handed(struct plane *plane);

// The PUTs whose heads have come since the last call. Each is to be received, answered or handed over.
struct put *plane_asked(struct plane *plane);

// The PUT of a socket that Python has been told of, and which waits for its word; NULL for none.
struct put *plane_asking(struct plane *plane, int fd);

// Receive the body into these areas, which have room for it; the digest has room for its blocks, and is of nothing yet.
// `areas.at` is the plane's to free.
// at_once: whether this thread is to take what has come of it, instead of waking another
// 1: it has ended, as `put->stopped` tells; 0: `plane_received` will tell; -1 with errno set.
int plane_receive(struct plane *plane, struct put *put, struct areas areas, struct block_digest digest, void *held,
                  int at_once);

// The PUTs of which the body has come, or no more will, since the last call. Each is to be answered.
struct put *plane_received(struct plane *plane);

// Answer that it is stored; `lines` are said of it.
void plane_answer(struct plane *plane, struct put *put, struct text lines);

// Answer this. The connection ends with it if `closes`, or if the body has not come.
void plane_refuse(struct plane *plane, struct put *put, struct text whole, int closes);

// Have a connection back whose PUT is not to be received by the plane. NULL without memory; then it is closed.
struct handed *plane_return(struct plane *plane, struct put *put);

size_t plane_connections(struct plane *plane);

void plane_counts(struct plane *plane, struct plane_counts *counts);

// Close idle connections now, and the others with their next answer.
void plane_drain(struct plane *plane);

// End the threads, and cut what is left. Blocks until they have ended.
void plane_stop(struct plane *plane);

// After plane_stop. `drop` is called with what PUTs hold that have not come to their end.
void plane_free(struct plane *plane, void (*let_go)(struct object *), void (*drop)(void *held));
