// The gateway's credentials, by access key and by the name that a session token has for one (kvgate/auth/session.py).
#pragma once

#include "head.h"
#include "sha256.h"

// As kvgate/auth/tenants.py has it.
#define MAX_ACCESS_KEY_NBYTES 128
#define MAX_TOKEN_NAME_NBYTES 171

// What is made of one before it is given to credentials_new.
struct credential_given {
    struct text access_key, secret_key;
    int tenant;                         // a number of the caller's, from 0
    uint8_t token_key[SHA256_NBYTES];  // kvgate.auth.session.token_key
};

struct credential {
    int tenant;
    uint32_t access_key_nbytes, token_name_nbytes;
    char access_key[MAX_ACCESS_KEY_NBYTES];
    char token_name[MAX_TOKEN_NAME_NBYTES];  // the access key in base64url without padding
    struct hmac secret;                      // keyed with "AWS4" and the secret key
    struct hmac token;
};

// Never changed after they were made: threads may share them.
struct credentials;

// How far times may be off, in whole seconds.
struct time_limits {
    int64_t max_skew_s;     // between a request's time and ours
    int64_t session_ttl_s;  // the longest that a token is good for; 0 accepts none
};

// Returns NULL, with errno ENOMEM, or EINVAL for an access key that is too long or given twice.
struct credentials *credentials_new(const struct credential_given *, size_t count, struct time_limits);

// Wipes every key.
void credentials_free(struct credentials *);

const struct time_limits *credentials_limits(const struct credentials *);

// The credential of this access key, or NULL.
const struct credential *find_access_key(const struct credentials *, struct text access_key);

// The credential that a token with this name is for, or NULL. Only the spelling that Sessions.issue writes is known.
const struct credential *find_token_name(const struct credentials *, struct text name);
