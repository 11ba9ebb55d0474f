#include "credentials.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

// Two open-addressed tables of places in `all`, counted from 1; at most half of each is used, so a search ends.
struct credentials {
    size_t count;
    struct credential *all;
    struct time_limits limits;
    uint32_t mask;
    uint32_t *by_access_key, *by_token_name;
};

// FNV-1a. Nobody outside chooses what is in the tables, so nobody can make them slow.
static uint32_t hash_of(struct text text) {
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < text.len; i++) hash = (hash ^ (uint8_t)text.at[i]) * 16777619u;
    return hash ^ hash >> 15;
}

static struct text access_key_of(const struct credential *credential) {
    return (struct text){credential->access_key, credential->access_key_nbytes};
}

static struct text token_name_of(const struct credential *credential) {
    return (struct text){credential->token_name, credential->token_name_nbytes};
}

typedef struct text (*name_fn)(const struct credential *);

// Where a name is in a table, or the empty place that it would have.
static uint32_t place_of(const struct credentials *credentials, const uint32_t *table, name_fn name_of,
                         struct text name) {
    uint32_t place = hash_of(name) & credentials->mask;
    for (; table[place]; place = (place + 1) & credentials->mask) {
        struct text other = name_of(&credentials->all[table[place] - 1]);
        if (other.len == name.len && memcmp(other.at, name.at, name.len) == 0) break;
    }
    return place;
}

static const struct credential *find(const struct credentials *credentials, const uint32_t *table, name_fn name_of,
                                     struct text name) {
    uint32_t number = table[place_of(credentials, table, name_of, name)];
    return number ? &credentials->all[number - 1] : NULL;
}

const struct credential *find_access_key(const struct credentials *credentials, struct text access_key) {
    return find(credentials, credentials->by_access_key, access_key_of, access_key);
}

const struct credential *find_token_name(const struct credentials *credentials, struct text name) {
    return find(credentials, credentials->by_token_name, token_name_of, name);
}

const struct time_limits *credentials_limits(const struct credentials *credentials) { return &credentials->limits; }

// RFC 4648, 5, without padding. Returns how many bytes were written: `nbytes` of input give 4 for every 3, rounded up.
static uint32_t base64url(char *out, const char *data, uint32_t nbytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint32_t bits = 0, held = 0, written = 0;
    for (uint32_t i = 0; i < nbytes; i++) {
        bits = bits << 8 | (uint8_t)data[i];
        for (held += 8; held >= 6; held -= 6) out[written++] = digits[bits >> (held - 6) & 63];
    }
    if (held) out[written++] = digits[bits << (6 - held) & 63];
    return written;
}

// Returns 0, or an errno.
static int make_ready(struct credential *credential, const struct credential_given *given) {
    if (given->access_key.len > MAX_ACCESS_KEY_NBYTES) return EINVAL;
    size_t nbytes = 4 + (size_t)given->secret_key.len;
    char *prefixed = malloc(nbytes);
    if (prefixed == NULL) return ENOMEM;
    memcpy(prefixed, "AWS4", 4);
    memcpy(prefixed + 4, given->secret_key.at, given->secret_key.len);
    hmac_key(&credential->secret, prefixed, nbytes);
    explicit_bzero(prefixed, nbytes);
    free(prefixed);
    hmac_key(&credential->token, given->token_key, sizeof given->token_key);
    credential->tenant = given->tenant;
    credential->access_key_nbytes = given->access_key.len;
    memcpy(credential->access_key, given->access_key.at, given->access_key.len);
    credential->token_name_nbytes = base64url(credential->token_name, given->access_key.at, given->access_key.len);
    return 0;
}

struct credentials *credentials_new(const struct credential_given *given, size_t count, struct time_limits limits) {
    int error = ENOMEM;
    struct credentials *credentials = calloc(1, sizeof *credentials);
    if (credentials == NULL) goto failed;
    uint32_t places = 8;
    while (places / 2 < count && places < 1u << 31) places *= 2;
    if (places / 2 < count) goto failed;
    credentials->limits = limits;
    credentials->mask = places - 1;
    credentials->count = count;
    credentials->all = calloc(count ? count : 1, sizeof *credentials->all);
    credentials->by_access_key = calloc(places, sizeof *credentials->by_access_key);
    credentials->by_token_name = calloc(places, sizeof *credentials->by_token_name);
    if (!credentials->all || !credentials->by_access_key || !credentials->by_token_name) goto failed;
    for (uint32_t i = 0; i < count; i++) {
        struct credential *credential = &credentials->all[i];
        error = make_ready(credential, &given[i]);
        if (error) goto failed;
        uint32_t *place =
            &credentials->by_access_key[place_of(credentials, credentials->by_access_key, access_key_of,
                                                 access_key_of(credential))];
        error = EINVAL;
        if (*place) goto failed;
        *place = i + 1;
        place = &credentials->by_token_name[place_of(credentials, credentials->by_token_name, token_name_of,
                                                     token_name_of(credential))];
        *place = i + 1;
    }
    return credentials;
failed:
    credentials_free(credentials);
    errno = error;
    return NULL;
}

void credentials_free(struct credentials *credentials) {
    if (credentials == NULL) return;
    if (credentials->all) explicit_bzero(credentials->all, credentials->count * sizeof *credentials->all);
    free(credentials->all);
    free(credentials->by_access_key);
    free(credentials->by_token_name);
    free(credentials);
}
