// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
#include "authenticate.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NOT_PROVED (-1)
#define SIGNATURE_DIGITS 64
#define DAY_DIGITS 8
#define AMZ_DATE_NBYTES 16
#define MAX_REGION_NBYTES 64
#define MAX_SIGNING_KEYS 256  // as many as kvgate.auth.sigv4.signing_key keeps

struct signing_key {
    const struct credential *credential;  // NULL in a place that is free
    char day[DAY_DIGITS];
    uint32_t region_nbytes;
    char region[MAX_REGION_NBYTES];
    struct hmac key;
};

struct signing_keys {
    const struct credentials *credentials;
    struct signing_key places[MAX_SIGNING_KEYS];
};

struct signing_keys *signing_keys_new(const struct credentials *credentials) {
    struct signing_keys *keys = calloc(1, sizeof *keys);
    if (keys) keys->credentials = credentials;
    return keys;
}

void signing_keys_free(struct signing_keys *keys) {
    if (keys == NULL) return;
    explicit_bzero(keys, sizeof *keys);
    free(keys);
}

// --- reading ---------------------------------------------------------------------------------------------------------

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static bool is_region_char(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
}

// Takes `literal` from the front of `rest`, if it is there.
static bool take(struct text *rest, const char *literal) {
    uint32_t nbytes = (uint32_t)strlen(literal);
    if (rest->len < nbytes || memcmp(rest->at, literal, nbytes) != 0) return false;
    rest->at += nbytes;
    rest->len -= nbytes;
    return true;
}

// Takes all before the next `mark`, and the mark too, from the front of `rest`; nothing, if there is none.
static bool take_until(struct text *rest, char mark, struct text *taken) {
    const char *found = memchr(rest->at, mark, rest->len);
    if (found == NULL) return false;
    *taken = (struct text){rest->at, (uint32_t)(found - rest->at)};
    rest->at += taken->len + 1;
    rest->len -= taken->len + 1;
    return true;
}

// The bytes that 64 lower-case hex digits stand for.
static bool read_hex(struct text text, uint8_t out[SHA256_NBYTES]) {
    if (text.len != SIGNATURE_DIGITS) return false;
    for (uint32_t i = 0; i < text.len; i++) {
        char c = text.at[i];
        int nibble = is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (nibble < 0) return false;
        out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | nibble : nibble << 4);
    }
    return true;
}

static void write_hex(char out[SIGNATURE_DIGITS], const uint8_t bytes[SHA256_NBYTES]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < SHA256_NBYTES; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
}

// `nbytes` decimal digits, or -1.
static int number_of(const char *digits, int nbytes) {
    int number = 0;
    for (int i = 0; i < nbytes; i++) {
        if (!is_digit(digits[i])) return -1;
        number = number * 10 + digits[i] - '0';
    }
    return number;
}

// Seconds since the epoch of a time such as 20260127T100000Z; -1 for whatever is none, and for one before the epoch.
static int64_t read_amz_date(struct text text) {
    static const uint8_t days_in[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    static const uint16_t days_before[12] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    if (text.len != AMZ_DATE_NBYTES || text.at[8] != 'T' || text.at[15] != 'Z') return -1;
    int year = number_of(text.at, 4), month = number_of(text.at + 4, 2), day = number_of(text.at + 6, 2);
    int hour = number_of(text.at + 9, 2), minute = number_of(text.at + 11, 2), second = number_of(text.at + 13, 2);
    if (year < 1970 || month < 1 || month > 12 || day < 1) return -1;
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59) return -1;
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > days_in[month - 1] + (leap && month == 2)) return -1;
    int64_t before = year - 1;
    int64_t days = 365 * before + before / 4 - before / 100 + before / 400 - 719162;  // of 1970 years
    days += days_before[month - 1] + (leap && month > 2) + day - 1;
    return ((days * 24 + hour) * 60 + minute) * 60 + second;
}

// Whether `x-amz-content-sha256` says how the body is protected, in a way that leaves nothing to be proved of it.
static bool is_payload(const struct head *head) {
    struct text text = head->values[H_CONTENT_SHA256];
    uint8_t bytes[SHA256_NBYTES];
    if (text.len == 16 && memcmp(text.at, "UNSIGNED-PAYLOAD", 16) == 0) return true;
    return head->method != PUT && read_hex(text, bytes);
}

// In a time that does not tell where they differ.
static bool same_digest(const uint8_t a[SHA256_NBYTES], const uint8_t b[SHA256_NBYTES]) {
    volatile uint8_t differ = 0;
    for (int i = 0; i < SHA256_NBYTES; i++) differ |= a[i] ^ b[i];
    return differ == 0;
}

// --- session tokens: kvgate/auth/session.py --------------------------------------------------------------------------

static bool is_bearer(struct text authorization) {
    static const char bearer[] = "bearer ";
    if (authorization.len < sizeof bearer - 1) return false;
    for (uint32_t i = 0; i < sizeof bearer - 1; i++) {
        char c = authorization.at[i];
        if ((c >= 'A' && c <= 'Z' ? c + 'a' - 'A' : c) != bearer[i]) return false;
    }
    return true;
}

// A moment as a token has it: up to 12 digits, the first not 0; -1 for whatever is none.
static int64_t read_end(struct text text) {
    if (text.len < 1 || text.len > 12 || text.at[0] == '0') return -1;
    int64_t end = 0;
    for (uint32_t i = 0; i < text.len; i++) {
        if (!is_digit(text.at[i])) return -1;
        end = end * 10 + text.at[i] - '0';
    }
    return end;
}

static int authenticate_token(const struct credentials *credentials, const struct head *head, int64_t now_s) {
    const struct time_limits *limits = credentials_limits(credentials);
    if (limits->session_ttl_s <= 0) return NOT_PROVED;
    if (head->values[H_CONTENT_SHA256].at && !is_payload(head)) return NOT_PROVED;
    struct text rest = head->values[H_AUTHORIZATION], end, name;
    rest.at += strlen("bearer ");
    rest.len -= (uint32_t)strlen("bearer ");
    const char *signed_at = rest.at;
    if (!take(&rest, "kvs1.") || !take_until(&rest, '.', &end) || !take_until(&rest, '.', &name)) return NOT_PROVED;
    size_t signed_nbytes = (size_t)(rest.at - signed_at) - 1;  // without the dot
    uint8_t proof[SHA256_NBYTES], expected[SHA256_NBYTES];
    int64_t expires = read_end(end);
    if (expires < 0 || !read_hex(rest, proof)) return NOT_PROVED;
    // Python's clock has fractions of a second: it must agree at each moment of this one.
    if (now_s + 1 > expires || expires > now_s + limits->session_ttl_s + limits->max_skew_s) return NOT_PROVED;
    const struct credential *credential = find_token_name(credentials, name);
    if (credential == NULL) return NOT_PROVED;
    hmac_digest(&credential->token, signed_at, signed_nbytes, expected);
    return same_digest(expected, proof) ? credential->tenant : NOT_PROVED;
}

// --- Signature V4: kvgate/auth/claim.py and sigv4.py -----------------------------------------------------------------

// What an Authorization header says. `signed_names` is its SignedHeaders, and `headers` their set, by bit.
struct claim {
    struct text access_key, day, region;
    struct text scope;  // the day, the region and what follows, as signed
    struct text signed_names;
    uint32_t headers;
    uint8_t signature[SHA256_NBYTES];
};

// Between the parts of an Authorization header: `,` or `, `.
static bool take_comma(struct text *rest) {
    if (!take(rest, ",")) return false;
    take(rest, " ");
    return true;
}

// The set of the headers of `a;b;c`, which must be sorted, each once, and sent; 0 for whatever is not so.
static uint32_t read_names(struct text names, const struct head *head) {
    uint32_t headers = 0;
    int next = 0;
    for (bool more = true; more;) {
        struct text name;
        more = take_until(&names, ';', &name);
        if (!more) name = names;
        while (next < H_COUNT && (header_names[next].len != name.len || memcmp(header_names[next].at, name.at, name.len)))
            next++;
        if (next == H_COUNT || head->values[next].at == NULL) return 0;
        headers |= 1u << next++;
    }
    return headers;
}

// Reads an Authorization header in the one form that is known here.
static bool read_claim(struct claim *claim, const struct head *head) {
    struct text rest = head->values[H_AUTHORIZATION];
    if (!take(&rest, "AWS4-HMAC-SHA256 Credential=") || !take_until(&rest, '/', &claim->access_key)) return false;
    claim->scope.at = rest.at;
    if (!take_until(&rest, '/', &claim->day) || claim->day.len != DAY_DIGITS) return false;
    if (!take_until(&rest, '/', &claim->region)) return false;
    if (claim->region.len < 1 || claim->region.len > MAX_REGION_NBYTES) return false;
    for (uint32_t i = 0; i < claim->region.len; i++)
        if (!is_region_char(claim->region.at[i])) return false;
    if (!take(&rest, "s3/aws4_request")) return false;
    claim->scope.len = (uint32_t)(rest.at - claim->scope.at);
    if (!take_comma(&rest) || !take(&rest, "SignedHeaders=") || !take_until(&rest, ',', &claim->signed_names))
        return false;
    take(&rest, " ");
    if (!take(&rest, "Signature=") || !read_hex(rest, claim->signature)) return false;
    claim->headers = read_names(claim->signed_names, head);
    return claim->headers != 0;
}

// What changes the meaning of a request must be signed: the host and every x-amz-* header. Nothing can sign itself.
static bool covers(const struct claim *claim, const struct head *head) {
    uint32_t needed = 1u << H_HOST;
    for (int header = H_CHECKSUM_CRC64NVME; header <= H_SDK_CHECKSUM; header++)
        if (head->values[header].at) needed |= 1u << header;
    return (claim->headers & needed) == needed && !(claim->headers & 1u << H_AUTHORIZATION);
}

// Whether a value is signed as it was sent: it has no tab, and no two blanks together.
static bool is_canonical(struct text value) {
    if (memchr(value.at, '\t', value.len)) return false;
    const char *end = value.at + value.len;
    for (const char *at = value.at; (at = memchr(at, ' ', (size_t)(end - at))) != NULL; at++)
        if (at == value.at || at + 1 == end || at[1] == ' ') return false;
    return true;
}

static void add_text(struct sha256 *hash, struct text text) { sha256_add(hash, text.at, text.len); }

// The sha256 of the canonical request. Returns false where a value is not signed as it was sent.
static bool hash_request(const struct claim *claim, const struct head *head, uint8_t out[SHA256_NBYTES]) {
    struct sha256 hash;
    sha256_begin(&hash);
    static const struct text methods[] = {[GET] = {"GET\n", 4}, [HEAD] = {"HEAD\n", 5}, [PUT] = {"PUT\n", 4}};
    add_text(&hash, methods[head->method]);
    add_text(&hash, head->path);  // no byte of it is one that signatures encode
    sha256_add(&hash, "\n", 1);
    if (head->query.at) add_text(&hash, head->query);  // nor of this
    sha256_add(&hash, "\n", 1);
    for (int header = 0; header < H_COUNT; header++) {
        if (!(claim->headers & 1u << header)) continue;
        struct text value = head->values[header];
        if (!is_canonical(value)) return false;
        add_text(&hash, header_names[header]);
        sha256_add(&hash, ":", 1);
        add_text(&hash, value);
        sha256_add(&hash, "\n", 1);
    }
    sha256_add(&hash, "\n", 1);
    add_text(&hash, claim->signed_names);
    sha256_add(&hash, "\n", 1);
    add_text(&hash, head->values[H_CONTENT_SHA256]);
    sha256_end(&hash, out);
    return true;
}

// Where the signing key of a credential, day and region is remembered, if it is.
static struct signing_key *place_of(struct signing_keys *keys, const struct credential *credential,
                                    const struct claim *claim) {
    uint32_t hash = 2166136261u ^ (uint32_t)((uintptr_t)credential / sizeof *credential);
    for (uint32_t i = 0; i < claim->day.len; i++) hash = (hash ^ (uint8_t)claim->day.at[i]) * 16777619u;
    for (uint32_t i = 0; i < claim->region.len; i++) hash = (hash ^ (uint8_t)claim->region.at[i]) * 16777619u;
    return &keys->places[(hash ^ hash >> 16) % MAX_SIGNING_KEYS];
}

static bool is_of(const struct signing_key *key, const struct credential *credential, const struct claim *claim) {
    return key->credential == credential && memcmp(key->day, claim->day.at, DAY_DIGITS) == 0 &&
           key->region_nbytes == claim->region.len && memcmp(key->region, claim->region.at, key->region_nbytes) == 0;
}

// Makes the signing key of a credential, day and region: an HMAC for each part, keyed with the one before.
static void derive(struct signing_key *key, const struct credential *credential, const struct claim *claim) {
    const struct text parts[] = {claim->region, {"s3", 2}, {"aws4_request", 12}};
    uint8_t digest[SHA256_NBYTES];
    key->credential = credential;
    memcpy(key->day, claim->day.at, DAY_DIGITS);
    key->region_nbytes = claim->region.len;
    memcpy(key->region, claim->region.at, claim->region.len);
    hmac_digest(&credential->secret, claim->day.at, claim->day.len, digest);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        hmac_key(&key->key, digest, sizeof digest);
        hmac_digest(&key->key, parts[i].at, parts[i].len, digest);
    }
    hmac_key(&key->key, digest, sizeof digest);
    explicit_bzero(digest, sizeof digest);
}

// Writes a text and says where it ends.
static char *put(char *at, struct text text) {
    memcpy(at, text.at, text.len);
    return at + text.len;
}

// The signature of a canonical request, of which `request_hash` is the sha256.
static void sign(const struct hmac *key, const struct claim *claim, struct text amz_date,
                 const uint8_t request_hash[SHA256_NBYTES], uint8_t out[SHA256_NBYTES]) {
    const struct text algorithm = {"AWS4-HMAC-SHA256\n", 17};
    char signed_text[17 + AMZ_DATE_NBYTES + 1 + DAY_DIGITS + 1 + MAX_REGION_NBYTES + sizeof "/s3/aws4_request" +
                     SIGNATURE_DIGITS];
    char *at = put(put(signed_text, algorithm), amz_date);
    *at++ = '\n';
    at = put(at, claim->scope);
    *at++ = '\n';
    write_hex(at, request_hash);
    hmac_digest(key, signed_text, (size_t)(at - signed_text) + SIGNATURE_DIGITS, out);
}

static int authenticate_signature(struct signing_keys *keys, const struct head *head, int64_t now_s) {
    struct claim claim;
    struct text amz_date = head->values[H_AMZ_DATE];
    if (amz_date.at == NULL || head->values[H_CONTENT_SHA256].at == NULL || !is_payload(head)) return NOT_PROVED;
    if (!read_claim(&claim, head) || !covers(&claim, head)) return NOT_PROVED;
    int64_t signed_at = read_amz_date(amz_date), max_skew_s = credentials_limits(keys->credentials)->max_skew_s;
    if (signed_at < 0 || memcmp(amz_date.at, claim.day.at, DAY_DIGITS) != 0) return NOT_PROVED;
    // Python's clock has fractions of a second: it must agree at each moment of this one.
    if (now_s + 1 - signed_at > max_skew_s || signed_at - now_s > max_skew_s) return NOT_PROVED;
    const struct credential *credential = find_access_key(keys->credentials, claim.access_key);
    uint8_t request_hash[SHA256_NBYTES], expected[SHA256_NBYTES];
    if (credential == NULL || !hash_request(&claim, head, request_hash)) return NOT_PROVED;

    struct signing_key *place = place_of(keys, credential, &claim), derived;
    bool known = is_of(place, credential, &claim);
    if (!known) derive(&derived, credential, &claim);
    sign(known ? &place->key : &derived.key, &claim, amz_date, request_hash, expected);
    bool proved = same_digest(expected, claim.signature);
    if (!known) {
        if (proved) *place = derived;
        explicit_bzero(&derived, sizeof derived);
    }
    return proved ? credential->tenant : NOT_PROVED;
}

int authenticate(struct signing_keys *keys, const struct head *head, int64_t now_s) {
    struct text authorization = head->values[H_AUTHORIZATION];
    if (authorization.at == NULL) return NOT_PROVED;
    if (is_bearer(authorization)) return authenticate_token(keys->credentials, head, now_s);
    return authenticate_signature(keys, head, now_s);
}
