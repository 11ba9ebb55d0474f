// Keys into paged KV, moved from the positions that RoPE rotated them for to others on the way.
//
// The pages have the keys only. A chunk's keys lie in one run for each layer and head, as in kv[layers, parts, heads,
// tokens, row]. Every chunk has a line of cosines and sines of its own: chunks may move by different distances.
// Twin: kvgate/kernels/rerotate.py, in front of scatter_twin of kvgate/kernels/paged_copy.py.
// Mirrored by kvgate/kernels/rotated_scatter.py.
#include "numbers.cuh"
#include "pages.cuh"

struct Moved {
    u64 address;  // of the first key
    u32 table;
    u32 offset;
};

struct RotatedScatter {
    Pages pages;  // its unit counts accesses of EACH numbers where `together`, else of one
    ChunkShape chunk;
    Divider rows;   // of a chunk: layers * heads * tokens
    Divider slots;  // of a row: `each` pairs, or `each` channels that are not rotated
    i64 layer_stride;
    i64 head_stride;
    u32 row_nbytes;
    u32 pairs;
    u32 first;  // channel that is rotated
    u32 interleaved;
    u32 together;  // whether EACH numbers can be moved in one access
    u32 count;     // slots in all chunks
    u64 chunks;    // Moved[...]
    u64 cosines;   // float[chunks][pairs]
    u64 sines;
};

// One number, or EACH of them, from channel `at` on.
template <class Number, u32 COUNT>
KV_INLINE void load_keys(u64 row, u32 at, float numbers[COUNT]) {
    typedef typename Number::Held Held;
    u64 from = row + (u64)at * sizeof(Held);
    if constexpr (COUNT == 1) {
        numbers[0] = Number::widen(load_stream((const Held*)from));
    } else {
        load_several<Number>(from, numbers);
    }
}

template <class Number, u32 COUNT>
KV_INLINE void store_keys(const Pages& pages, u64 page, u32 at, const float numbers[COUNT]) {
    typedef typename Number::Held Held;
    u64 to = access_address(pages, page, at / COUNT, COUNT * sizeof(Held));
    if constexpr (COUNT == 1) {
        store_stream((Held*)to, Number::narrow(numbers[0]));
    } else {
        store_several<Number>(to, numbers);
    }
}

// Channels that keep their bits.
template <class Number, u32 COUNT>
KV_INLINE void copy_keys(const Pages& pages, u64 row, u64 page, u32 at) {
    typedef typename Number::Held Held;
    u64 from = row + (u64)at * sizeof(Held), to = access_address(pages, page, at / COUNT, COUNT * sizeof(Held));
    if constexpr (COUNT == 1) {
        store_stream((Held*)to, load_stream((const Held*)from));
    } else {
        typedef typename Several<Held>::Access Access;
        store_stream((Access*)to, load_stream((const Access*)from));
    }
}

template <class Number, u32 COUNT>
KV_INLINE void move_slot(const RotatedScatter& copy, u32 index) {
    Divided slot = divide(index, copy.slots);
    Divided row = divide(slot.quotient, copy.rows);
    const Moved& moved = ((const Moved*)copy.chunks)[row.quotient];
    Row place = row_of(row.rest, copy.chunk);
    u64 page = row_address(copy.pages, copy.chunk, place, moved.table, moved.offset);
    if (page == 0) return;
    u64 key = moved.address + place.layer * copy.layer_stride + place.head * copy.head_stride +
              (u64)place.token * copy.row_nbytes;
    u32 pair = slot.rest * COUNT;
    if (pair >= copy.pairs) {
        u32 at = pair - copy.pairs;
        copy_keys<Number, COUNT>(copy.pages, key, page, at < copy.first ? at : at + 2 * copy.pairs);
        return;
    }
    // A pair is two halves apart, or one beside the other: then COUNT pairs are two accesses that follow one another.
    u32 at = copy.first + (copy.interleaved ? 2 * pair : pair);
    u32 other = copy.interleaved ? at + COUNT : at + copy.pairs;
    const float* cosines = (const float*)copy.cosines + (u64)row.quotient * copy.pairs + pair;
    const float* sines = (const float*)copy.sines + (u64)row.quotient * copy.pairs + pair;
    float numbers[2 * COUNT], turned[2 * COUNT];
    load_keys<Number, COUNT>(key, at, numbers);
    load_keys<Number, COUNT>(key, other, numbers + COUNT);
    UNROLL for (u32 i = 0; i < COUNT; i++) {
        u32 first = copy.interleaved ? 2 * i : i, second = copy.interleaved ? 2 * i + 1 : i + COUNT;
        float a = numbers[first], b = numbers[second];
        turned[first] = a * cosines[i] - b * sines[i];
        turned[second] = b * cosines[i] + a * sines[i];
    }
    store_keys<Number, COUNT>(copy.pages, page, at, turned);
    store_keys<Number, COUNT>(copy.pages, page, other, turned + COUNT);
}

template <class Number>
__device__ __forceinline__ void move_slots(const RotatedScatter& copy) {
    for (u32 index = blockIdx.x * blockDim.x + threadIdx.x; index < copy.count; index += gridDim.x * blockDim.x) {
        if (copy.together) {
            move_slot<Number, EACH>(copy, index);
        } else {
            move_slot<Number, 1>(copy, index);
        }
    }
}

extern "C" __global__ void rotated_scatter_bf16(RotatedScatter copy) { move_slots<BF16>(copy); }
extern "C" __global__ void rotated_scatter_f16(RotatedScatter copy) { move_slots<F16>(copy); }
extern "C" __global__ void rotated_scatter_f32(RotatedScatter copy) { move_slots<F32>(copy); }
