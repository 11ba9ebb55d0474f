// Chunks out of paged KV in fewer bytes (gather), and back into it (scatter): int8, fp8 e4m3, int4.
//
// One part of a chunk, K, V or the latent of MLA, at a time: its codes, and the scale (in int4 also the low) of each
// group, lie in tensors of their own, each in one run of memory: [layers, heads, tokens, channels] for codes. The pages
// have that part only, and those layers and heads only.
// Twins: kvgate/kernels/quantise.py, behind gather_twin and in front of scatter_twin of kvgate/kernels/paged_copy.py.
// Mirrored by kvgate/kernels/quantised_copy.py.
#include "numbers.cuh"
#include "pages.cuh"

struct Encoded {
    u64 codes;
    u64 scales;
    u64 lows;  // 0 where the codec has none
    u32 table;
    u32 offset;
};

struct QuantisedCopy {
    Pages pages;  // its unit counts accesses of EACH numbers where `together`, else of one
    ChunkShape chunk;
    Divider groups;  // of a row; or of the tokens, for those that are grouped by token
    u32 channels;
    u32 group;     // channels, or tokens, of a group
    u32 lanes;     // threads that share a group of channels: a power of two
    u32 together;  // whether EACH numbers, and their codes, can be moved in one access
    u32 count;     // groups of channels in all chunks; or pairs of channels in all groups of tokens
    Divider rows;  // of a chunk: layers * heads * tokens
    Divider pairs;
    u64 chunks;  // Encoded[...]
    u64 faults;  // u32: set where something could not be kept, or was not what gather writes
};

KV_INLINE void fault(const QuantisedCopy& copy) { *(volatile u32*)copy.faults = 1; }

// --- groups of channels: each token by itself ------------------------------------------------------------------------

// A thread's part of one group: EACH channels that follow one another, or fewer at the end.
struct Share {
    u64 page;    // of the row; 0 where its block is left out
    u32 chunk;
    u32 row;     // of the chunk
    u32 group;   // of the row
    u32 first;   // channel of the row
    u32 count;   // of channels, up to EACH; 0 beyond the end
};

KV_INLINE Share share_of(const QuantisedCopy& copy, u32 index, u32 lane) {
    Share share;
    share.page = 0;
    share.chunk = share.row = share.group = share.first = share.count = 0;
    if (index >= copy.count) return share;
    Divided group = divide(index, copy.groups);
    Divided row = divide(group.quotient, copy.rows);
    const Encoded& encoded = ((const Encoded*)copy.chunks)[row.quotient];
    share.chunk = row.quotient;
    share.row = row.rest;
    share.group = group.rest;
    share.page = row_address(copy.pages, copy.chunk, row_of(row.rest, copy.chunk), encoded.table, encoded.offset);
    u32 stop = (group.rest + 1) * copy.group;
    if (stop > copy.channels) stop = copy.channels;
    share.first = group.rest * copy.group + lane * EACH;
    if (share.first < stop) share.count = stop - share.first < EACH ? stop - share.first : EACH;
    return share;
}

template <class Number>
KV_INLINE void load_numbers(const QuantisedCopy& copy, const Share& share, float numbers[EACH]) {
    typedef typename Number::Held Held;
    UNROLL for (u32 i = 0; i < EACH; i++) numbers[i] = 0;
    if (share.page == 0 || share.count == 0) return;
    if (copy.together) {
        u64 from = access_address(copy.pages, share.page, share.first / EACH, EACH * sizeof(Held));
        load_several<Number>(from, numbers);
        return;
    }
    UNROLL for (u32 i = 0; i < EACH; i++) {
        if (i >= share.count) break;
        numbers[i] = Number::widen(
            load_stream((const Held*)access_address(copy.pages, share.page, share.first + i, sizeof(Held))));
    }
}

template <class Number>
KV_INLINE void store_numbers(const QuantisedCopy& copy, const Share& share, const float numbers[EACH]) {
    typedef typename Number::Held Held;
    if (share.page == 0 || share.count == 0) return;
    if (copy.together) {
        u64 to = access_address(copy.pages, share.page, share.first / EACH, EACH * sizeof(Held));
        store_several<Number>(to, numbers);
        return;
    }
    UNROLL for (u32 i = 0; i < EACH; i++) {
        if (i >= share.count) break;
        store_stream((Held*)access_address(copy.pages, share.page, share.first + i, sizeof(Held)),
                     Number::narrow(numbers[i]));
    }
}

// A code a byte.
KV_INLINE void load_bytes(const QuantisedCopy& copy, const Share& share, u64 codes, u32 code[EACH]) {
    codes += (u64)share.row * copy.channels + share.first;
    UNROLL for (u32 i = 0; i < EACH; i++) code[i] = 0;
    if (copy.together && share.count) {
        u32 word = load_stream((const u32*)codes);
        UNROLL for (u32 i = 0; i < EACH; i++) code[i] = (word >> (8 * i)) & 0xFF;
    } else {
        UNROLL for (u32 i = 0; i < EACH; i++) {
            if (i < share.count) code[i] = load_stream((const u8*)codes + i);
        }
    }
}

KV_INLINE void store_bytes(const QuantisedCopy& copy, const Share& share, u64 codes, const u32 code[EACH]) {
    codes += (u64)share.row * copy.channels + share.first;
    if (copy.together && share.count) {
        store_stream((u32*)codes, code[0] | code[1] << 8 | code[2] << 16 | code[3] << 24);
    } else {
        UNROLL for (u32 i = 0; i < EACH; i++) {
            if (i < share.count) store_stream((u8*)codes + i, (u8)code[i]);
        }
    }
}

// Two codes a byte, the even channel in the low four bits. A group begins with an even channel.
KV_INLINE void load_halves(const QuantisedCopy& copy, const Share& share, u64 codes, u32 code[EACH]) {
    codes += (u64)share.row * ((copy.channels + 1) / 2) + share.first / 2;
    UNROLL for (u32 i = 0; i < EACH; i++) code[i] = 0;
    if (copy.together && share.count) {
        u32 word = load_stream((const u16*)codes);
        UNROLL for (u32 i = 0; i < EACH; i++) code[i] = (word >> (4 * i)) & 15;
        return;
    }
    UNROLL for (u32 i = 0; i < EACH; i += 2) {
        if (i >= share.count) break;
        u32 byte = load_stream((const u8*)codes + i / 2);
        code[i] = byte & 15;
        if (i + 1 < share.count) {
            code[i + 1] = byte >> 4;
        } else if (byte >> 4) {
            fault(copy);  // a code of no channel
        }
    }
}

KV_INLINE void store_halves(const QuantisedCopy& copy, const Share& share, u64 codes, const u32 code[EACH]) {
    codes += (u64)share.row * ((copy.channels + 1) / 2) + share.first / 2;
    if (copy.together && share.count) {
        store_stream((u16*)codes, (u16)(code[0] | code[1] << 4 | code[2] << 8 | code[3] << 12));
        return;
    }
    UNROLL for (u32 i = 0; i < EACH; i += 2) {
        if (i >= share.count) break;
        u32 second = i + 1 < share.count ? code[i + 1] : 0;
        store_stream((u8*)codes + i / 2, (u8)(code[i] | second << 4));
    }
}

// Of the threads that share a group; every thread of the warp takes part.
__device__ __forceinline__ u32 group_max(u32 value, u32 lanes) {
    for (u32 mask = lanes / 2; mask; mask /= 2) {
        u32 other = __shfl_xor_sync(0xFFFFFFFFu, value, mask);
        if (other > value) value = other;
    }
    return value;
}

// The same order as that of the numbers, for numbers that are not NaN; a negative zero is less than a zero.
KV_INLINE u32 ordered(float number) {
    u32 bits = as_bits(number);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

KV_INLINE float from_ordered(u32 key) { return as_float(key >> 31 ? key & 0x7FFFFFFF : ~key); }

struct Int8 {
    static KV_INLINE float steps() { return 127; }
    static KV_INLINE u32 code(float quotient) { return int8_code(quotient); }
    static KV_INLINE bool is_code(u32) { return true; }
    static KV_INLINE float number(u32 code) { return int8_number(code); }
};

struct Fp8 {
    static KV_INLINE float steps() { return 448; }
    static KV_INLINE u32 code(float quotient) { return fp8_code(quotient); }
    static KV_INLINE bool is_code(u32 code) { return is_fp8(code); }
    static KV_INLINE float number(u32 code) { return fp8_number(code); }
};

template <class Kind, class Number>
__device__ __forceinline__ void gather_bytes(const QuantisedCopy& copy) {
    u32 side_by_side = blockDim.x / copy.lanes, lane = threadIdx.x & (copy.lanes - 1);
    for (u32 first = blockIdx.x * side_by_side; first < copy.count; first += gridDim.x * side_by_side) {
        Share share = share_of(copy, first + threadIdx.x / copy.lanes, lane);
        float numbers[EACH];
        load_numbers<Number>(copy, share, numbers);
        u32 largest = 0;
        UNROLL for (u32 i = 0; i < EACH; i++) {
            u32 magnitude = as_bits(numbers[i]) & 0x7FFFFFFF;
            if (magnitude > largest) largest = magnitude;
        }
        u32 scale = scale_of(as_float(group_max(largest, copy.lanes)), Kind::steps());
        if (share.count == 0) continue;
        const Encoded& encoded = ((const Encoded*)copy.chunks)[share.chunk];
        u32 code[EACH];
        UNROLL for (u32 i = 0; i < EACH; i++) code[i] = Kind::code(scale == POISON ? 0 : numbers[i] / divisor_of(scale));
        store_bytes(copy, share, encoded.codes, code);
        if (lane != 0) continue;
        ((u16*)encoded.scales)[(u64)share.row * copy.groups.divisor + share.group] = (u16)scale;
        if (scale == POISON) fault(copy);
    }
}

template <class Kind, class Number>
__device__ __forceinline__ void scatter_bytes(const QuantisedCopy& copy) {
    u32 side_by_side = blockDim.x / copy.lanes, lane = threadIdx.x & (copy.lanes - 1);
    for (u32 first = blockIdx.x * side_by_side; first < copy.count; first += gridDim.x * side_by_side) {
        Share share = share_of(copy, first + threadIdx.x / copy.lanes, lane);
        if (share.count == 0) continue;
        const Encoded& encoded = ((const Encoded*)copy.chunks)[share.chunk];
        u32 scale = ((const u16*)encoded.scales)[(u64)share.row * copy.groups.divisor + share.group];
        u32 code[EACH];
        load_bytes(copy, share, encoded.codes, code);
        bool good = is_scale(scale);
        float numbers[EACH];
        UNROLL for (u32 i = 0; i < EACH; i++) {
            if (!Kind::is_code(code[i])) good = false;
            numbers[i] = Kind::number(code[i]) * from_bf16((u16)scale);
        }
        if (good) {
            store_numbers<Number>(copy, share, numbers);
        } else {
            fault(copy);
        }
    }
}

template <class Number>
__device__ __forceinline__ void gather_halves(const QuantisedCopy& copy) {
    u32 side_by_side = blockDim.x / copy.lanes, lane = threadIdx.x & (copy.lanes - 1);
    for (u32 first = blockIdx.x * side_by_side; first < copy.count; first += gridDim.x * side_by_side) {
        Share share = share_of(copy, first + threadIdx.x / copy.lanes, lane);
        float numbers[EACH];
        load_numbers<Number>(copy, share, numbers);
        u32 magnitude = 0, highest = 0, below = 0;  // `below` is the complement of the lowest, so that both are a maximum
        UNROLL for (u32 i = 0; i < EACH; i++) {
        if (i >= share.count) break;
            u32 key = ordered(numbers[i]);
            if (key > highest) highest = key;
            if (~key > below) below = ~key;
            if ((as_bits(numbers[i]) & 0x7FFFFFFF) > magnitude) magnitude = as_bits(numbers[i]) & 0x7FFFFFFF;
        }
        magnitude = group_max(magnitude, copy.lanes);
        highest = group_max(highest, copy.lanes);
        below = group_max(below, copy.lanes);
        if (share.count == 0) continue;
        u32 low = low_of(from_ordered(~below) + 0.0f);
        u32 scale = magnitude >= NOT_FINITE ? POISON : scale_of(from_ordered(highest) + 0.0f - from_bf16((u16)low), 15);
        if (scale == POISON) low = 0;
        const Encoded& encoded = ((const Encoded*)copy.chunks)[share.chunk];
        u32 code[EACH];
        UNROLL for (u32 i = 0; i < EACH; i++) {
            code[i] = int4_code(scale == POISON ? 0 : (numbers[i] - from_bf16((u16)low)) / divisor_of(scale));
        }
        store_halves(copy, share, encoded.codes, code);
        if (lane != 0) continue;
        u64 at = (u64)share.row * copy.groups.divisor + share.group;
        ((u16*)encoded.scales)[at] = (u16)scale;
        ((u16*)encoded.lows)[at] = (u16)low;
        if (scale == POISON) fault(copy);
    }
}

template <class Number>
__device__ __forceinline__ void scatter_halves(const QuantisedCopy& copy) {
    u32 side_by_side = blockDim.x / copy.lanes, lane = threadIdx.x & (copy.lanes - 1);
    for (u32 first = blockIdx.x * side_by_side; first < copy.count; first += gridDim.x * side_by_side) {
        Share share = share_of(copy, first + threadIdx.x / copy.lanes, lane);
        if (share.count == 0) continue;
        const Encoded& encoded = ((const Encoded*)copy.chunks)[share.chunk];
        u64 at = (u64)share.row * copy.groups.divisor + share.group;
        u32 scale = ((const u16*)encoded.scales)[at], low = ((const u16*)encoded.lows)[at];
        u32 code[EACH];
        load_halves(copy, share, encoded.codes, code);
        if (!is_scale(scale) || !is_low(low)) {
            fault(copy);
            continue;
        }
        float numbers[EACH];
        UNROLL for (u32 i = 0; i < EACH; i++) numbers[i] = (float)code[i] * from_bf16((u16)scale) + from_bf16((u16)low);
        store_numbers<Number>(copy, share, numbers);
    }
}

// --- groups of tokens: each channel by itself ------------------------------------------------------------------------

// Two channels, whose codes share a byte, of one group of tokens.
struct Column {
    u32 chunk;
    u32 plane;  // layer * heads + head
    u32 layer;
    u32 head;
    u32 group;
    u32 first;  // token
    u32 stop;
    u32 channel;
    u32 count;  // of channels: 1 or 2
};

KV_INLINE Column column_of(const QuantisedCopy& copy, u32 index) {
    Divided pair = divide(index, copy.pairs);
    Divided group = divide(pair.quotient, copy.groups);
    Divided head = divide(group.quotient, copy.chunk.heads);
    Divided chunk = divide(head.quotient, copy.rows);  // here: the layers of a chunk
    Column column;
    column.chunk = chunk.quotient;
    column.layer = chunk.rest;
    column.head = head.rest;
    column.plane = chunk.rest * copy.chunk.heads.divisor + head.rest;
    column.group = group.rest;
    column.first = group.rest * copy.group;
    column.stop = column.first + copy.group;
    if (column.stop > copy.chunk.tokens.divisor) column.stop = copy.chunk.tokens.divisor;
    column.channel = pair.rest * 2;
    column.count = column.channel + 1 < copy.channels ? 2 : 1;
    return column;
}

KV_INLINE u64 column_row(const QuantisedCopy& copy, const Column& column, const Encoded& encoded, u32 token) {
    Row row;
    row.layer = column.layer;
    row.part = 0;
    row.head = column.head;
    row.token = token;
    return row_address(copy.pages, copy.chunk, row, encoded.table, encoded.offset);
}

KV_INLINE u8* column_codes(const QuantisedCopy& copy, const Column& column, const Encoded& encoded, u32 token) {
    u64 row = (u64)column.plane * copy.chunk.tokens.divisor + token;
    return (u8*)encoded.codes + row * copy.pairs.divisor + column.channel / 2;
}

KV_INLINE u64 column_scale(const QuantisedCopy& copy, const Column& column) {
    return ((u64)column.plane * copy.groups.divisor + column.group) * copy.channels + column.channel;
}

template <class Number>
KV_INLINE float load_number(const QuantisedCopy& copy, u64 row, u32 channel) {
    typedef typename Number::Held Held;
    // Read twice, the second time out of a cache: not streamed.
    return Number::widen(*(const Held*)access_address(copy.pages, row, channel, sizeof(Held)));
}

template <class Number>
KV_INLINE void gather_column(const QuantisedCopy& copy, u32 index) {
    Column column = column_of(copy, index);
    const Encoded& encoded = ((const Encoded*)copy.chunks)[column.chunk];
    u32 magnitude[2] = {0, 0}, highest[2] = {0, 0}, below[2] = {0, 0}, scale[2] = {0, 0}, low[2] = {0, 0};
    for (u32 token = column.first; token < column.stop; token++) {
        u64 row = column_row(copy, column, encoded, token);
        UNROLL for (u32 i = 0; i < 2; i++) {
            if (i >= column.count) break;
            float number = row ? load_number<Number>(copy, row, column.channel + i) : 0;
            u32 key = ordered(number), bits = as_bits(number) & 0x7FFFFFFF;
            if (key > highest[i]) highest[i] = key;
            if (~key > below[i]) below[i] = ~key;
            if (bits > magnitude[i]) magnitude[i] = bits;
        }
    }
    u64 at = column_scale(copy, column);
    UNROLL for (u32 i = 0; i < 2; i++) {
        if (i >= column.count) break;
        low[i] = low_of(from_ordered(~below[i]) + 0.0f);
        scale[i] = magnitude[i] >= NOT_FINITE
                       ? POISON
                       : scale_of(from_ordered(highest[i]) + 0.0f - from_bf16((u16)low[i]), 15);
        if (scale[i] == POISON) {
            low[i] = 0;
            fault(copy);
        }
        ((u16*)encoded.scales)[at + i] = (u16)scale[i];
        ((u16*)encoded.lows)[at + i] = (u16)low[i];
    }
    for (u32 token = column.first; token < column.stop; token++) {
        u64 row = column_row(copy, column, encoded, token);
        u32 byte = 0;
        UNROLL for (u32 i = 0; i < 2; i++) {
            if (i >= column.count) break;
            float number = row ? load_number<Number>(copy, row, column.channel + i) : 0;
            float quotient = scale[i] == POISON ? 0 : (number - from_bf16((u16)low[i])) / divisor_of(scale[i]);
            byte |= int4_code(quotient) << (4 * i);
        }
        store_stream(column_codes(copy, column, encoded, token), (u8)byte);
    }
}

template <class Number>
KV_INLINE void scatter_column(const QuantisedCopy& copy, u32 index) {
    typedef typename Number::Held Held;
    Column column = column_of(copy, index);
    const Encoded& encoded = ((const Encoded*)copy.chunks)[column.chunk];
    u32 scale[2] = {0, 0}, low[2] = {0, 0};
    u64 at = column_scale(copy, column);
    UNROLL for (u32 i = 0; i < 2; i++) {
        if (i >= column.count) break;
        scale[i] = ((const u16*)encoded.scales)[at + i];
        low[i] = ((const u16*)encoded.lows)[at + i];
        if (!is_scale(scale[i]) || !is_low(low[i])) {
            fault(copy);
            return;
        }
    }
    for (u32 token = column.first; token < column.stop; token++) {
        u32 byte = load_stream((const u8*)column_codes(copy, column, encoded, token));
        if (column.count == 1 && byte >> 4) fault(copy);  // a code of no channel
        u64 row = column_row(copy, column, encoded, token);
        if (row == 0) continue;
        UNROLL for (u32 i = 0; i < 2; i++) {
            if (i >= column.count) break;
            float number = (float)((byte >> (4 * i)) & 15) * from_bf16((u16)scale[i]) + from_bf16((u16)low[i]);
            store_stream((Held*)access_address(copy.pages, row, column.channel + i, sizeof(Held)),
                         Number::narrow(number));
        }
    }
}

template <class Number, bool INTO_PAGES>
__device__ __forceinline__ void copy_columns(const QuantisedCopy& copy) {
    for (u32 index = blockIdx.x * blockDim.x + threadIdx.x; index < copy.count; index += gridDim.x * blockDim.x) {
        if (INTO_PAGES) {
            scatter_column<Number>(copy, index);
        } else {
            gather_column<Number>(copy, index);
        }
    }
}

#define QUANTISED_COPY(dtype, Number)                                                                                  \
    extern "C" __global__ void gather_int8_##dtype(QuantisedCopy copy) { gather_bytes<Int8, Number>(copy); }           \
    extern "C" __global__ void scatter_int8_##dtype(QuantisedCopy copy) { scatter_bytes<Int8, Number>(copy); }         \
    extern "C" __global__ void gather_fp8_##dtype(QuantisedCopy copy) { gather_bytes<Fp8, Number>(copy); }             \
    extern "C" __global__ void scatter_fp8_##dtype(QuantisedCopy copy) { scatter_bytes<Fp8, Number>(copy); }           \
    extern "C" __global__ void gather_int4_channels_##dtype(QuantisedCopy copy) { gather_halves<Number>(copy); }       \
    extern "C" __global__ void scatter_int4_channels_##dtype(QuantisedCopy copy) { scatter_halves<Number>(copy); }     \
    extern "C" __global__ void gather_int4_tokens_##dtype(QuantisedCopy copy) { copy_columns<Number, false>(copy); }   \
    extern "C" __global__ void scatter_int4_tokens_##dtype(QuantisedCopy copy) { copy_columns<Number, true>(copy); }

QUANTISED_COPY(bf16, BF16)
QUANTISED_COPY(f16, F16)
QUANTISED_COPY(f32, F32)
