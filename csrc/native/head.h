// The head of a request as the native data plane takes it: a strict subset of what kvgate/server/http1/head.py takes.
//
// A parsed head is HTTP/1.1: GET or HEAD without a body, or PUT with one of known length, which may wait to be
// asked for. Its path has only A-Z a-z 0-9 . _ ~ / -; it has no query but the one that some SDKs name the operation in,
// x-id=GetObject, x-id=HeadObject or x-id=PutObject, which changes nothing; its headers are of the list below, none
// twice, and say nothing of what the method does not do; their values are printable ASCII and tabs, without the blanks
// around them.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Bytes of somebody else's; `at` is NULL where there is nothing. No NUL ends them.
struct text {
    const char *at;
    uint32_t len;
};

// In the byte order of their names.
enum header {
    H_ACCEPT,
    H_ACCEPT_ENCODING,
    H_SDK_INVOCATION,
    H_SDK_REQUEST,
    H_AUTHORIZATION,
    H_CONNECTION,
    H_CONTENT_LENGTH,
    H_CONTENT_TYPE,
    H_EXPECT,
    H_HOST,
    H_RANGE,
    H_USER_AGENT,
    H_CHECKSUM_CRC64NVME,
    H_CHECKSUM_MODE,
    H_CONTENT_SHA256,
    H_AMZ_DATE,
    H_SDK_CHECKSUM,
    H_COUNT
};

// In lower case.
extern const struct text header_names[H_COUNT];

// `nbytes` is the head's own length, with the blank line, and `body_nbytes` that of what follows.
struct head {
    enum method { GET, HEAD, PUT } method;
    struct text path, query;
    struct text values[H_COUNT];
    uint32_t nbytes;
    uint64_t body_nbytes;
};
