// Whom a request speaks for, proved without Python: kvgate/auth/authenticator.py's `authenticate`, or stricter.
//
// Invariants
// 1. Nothing is accepted that the Python one refuses at the same time, and then for the same tenant. What is not of the
//    one form that clients send is not judged: -1, and Python decides and words the error.
// 2. A signing key is remembered only once a request was signed with it, in a table of fixed size; it is wiped with it.
#pragma once

#include "credentials.h"

// What one thread remembers of signing keys. It belongs to one `struct credentials`, which must outlive it.
struct signing_keys;

// Returns NULL without memory.
struct signing_keys *signing_keys_new(const struct credentials *);

// Wipes every key.
void signing_keys_free(struct signing_keys *);

// The number of the tenant that a request speaks for, by Signature V4 in its headers or by a session token; -1: not
// proved here, ask Python.
// now_s: seconds since the epoch, rounded down
int authenticate(struct signing_keys *, const struct head *, int64_t now_s);
