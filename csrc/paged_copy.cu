// Chunks out of paged KV (gather), and back into it (scatter): bytes as they are.
//
// What moves is a list of pieces: runs of a chunk's bytes that lie in one run of memory, on this GPU or in page-locked
// memory of the host. Cutting at layers, heads, and where registered memory ends, is the planner's. A launch covers
// pieces x tiles; a block of threads takes tile after tile, so that a launch may have any number of blocks.
// Twin: kvgate/kernels/paged_copy.py.
#include "pages.cuh"

struct Piece {
    u64 address;  // of the piece's first byte
    u32 first;    // which access of the chunk that is
    u32 count;    // accesses in the piece
    u32 table;    // the chunk's line of the block table
    u32 offset;   // the place of the chunk's first token in its first block
};

struct PagedCopy {
    Pages pages;
    ChunkShape chunk;
    Divider tiles;  // of the largest piece
    u32 piece_count;
    u64 pieces;  // Piece[piece_count]
};

// Accesses that a thread has under way at a time.
#define IN_FLIGHT 4

template <class Access, bool INTO_PAGES>
KV_INLINE void copy_tile(const PagedCopy& copy, u32 work, u32 thread, u32 threads) {
    Divided at = divide(work, copy.tiles);
    const Piece piece = ((const Piece*)copy.pieces)[at.quotient];
    Access held[IN_FLIGHT];
    u64 target[IN_FLIGHT];
    for (u32 step = 0; step < IN_FLIGHT; step++) {
        u32 index = (at.rest * IN_FLIGHT + step) * threads + thread;
        target[step] = 0;
        if (index >= piece.count) continue;
        Divided row = divide(piece.first + index, copy.chunk.row);
        u64 page = row_address(copy.pages, copy.chunk, row_of(row.quotient, copy.chunk), piece.table, piece.offset);
        if (page == 0) continue;
        page = access_address(copy.pages, page, row.rest, sizeof(Access));
        u64 chunk = piece.address + (u64)index * sizeof(Access);
        held[step] = load_stream((const Access*)(INTO_PAGES ? chunk : page));
        target[step] = INTO_PAGES ? page : chunk;
    }
    for (u32 step = 0; step < IN_FLIGHT; step++) {
        if (target[step] != 0) store_stream((Access*)target[step], held[step]);
    }
}

template <class Access, bool INTO_PAGES>
__device__ __forceinline__ void copy_pieces(const PagedCopy& copy) {
    u32 work_count = copy.piece_count * copy.tiles.divisor;
    for (u32 work = blockIdx.x; work < work_count; work += gridDim.x) {
        copy_tile<Access, INTO_PAGES>(copy, work, threadIdx.x, blockDim.x);
    }
}

#define PAGED_COPY(width, Access)                                                                       \
    extern "C" __global__ void gather_##width(PagedCopy copy) { copy_pieces<Access, false>(copy); }      \
    extern "C" __global__ void scatter_##width(PagedCopy copy) { copy_pieces<Access, true>(copy); }

PAGED_COPY(16, Wide16)
PAGED_COPY(8, Wide8)
PAGED_COPY(4, u32)
PAGED_COPY(2, u16)
PAGED_COPY(1, u8)
