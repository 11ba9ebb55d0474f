// Where the bytes of an engine's paged KV lie, for any layout that is affine within a block.
//
// A row is the head_dim elements of one token, head and part. It lies in the pages at
//
//     bases[layer * parts + part] + block * block_stride + head * head_stride + (token in block) * token_stride
//
// as units of `unit` accesses each, unit_stride apart (a row that lies in one piece is one unit). All strides are bytes.
// Mirrored by kvgate/kernels/pages.py, which measures the width of an access and checks every bound.
#pragma once

#include "platform.cuh"

struct Pages {
    u64 bases;   // u64[layers * parts]: addresses
    u64 tables;  // i32[chunks * table_width]: the block of each run of block_tokens tokens; negative: leave it out
    i64 block_stride;
    i64 head_stride;
    i64 token_stride;
    i64 unit_stride;
    u32 table_width;
    u32 first_layer;  // of the chunk's layers, the one that bases[0] is
    u32 first_head;   // of the chunk's heads, the one that lies first in the pages
    u32 reserved;
    Divider unit;          // accesses a unit
    Divider block_tokens;  // tokens a block
};

// A chunk is kv[layers, parts, heads, tokens, row] in C order.
struct ChunkShape {
    Divider row;  // accesses a row
    Divider tokens;
    Divider heads;
    Divider parts;
};

// Where a row is: which layer, part, head and token of the chunk.
struct Row {
    u32 layer;
    u32 part;
    u32 head;
    u32 token;
};

KV_INLINE Row row_of(u32 index, const ChunkShape& shape) {
    Divided token = divide(index, shape.tokens);
    Divided head = divide(token.quotient, shape.heads);
    Divided part = divide(head.quotient, shape.parts);
    Row row;
    row.layer = part.quotient;
    row.part = part.rest;
    row.head = head.rest;
    row.token = token.rest;
    return row;
}

// The address of a row in the pages; 0 where its block is left out.
//
// table: the chunk's line of the table; offset: the place of the chunk's first token in its first block
KV_INLINE u64 row_address(const Pages& pages, const ChunkShape& shape, const Row& row, u32 table, u32 offset) {
    Divided place = divide(row.token + offset, pages.block_tokens);
    i32 block = ((const i32*)pages.tables)[(u64)table * pages.table_width + place.quotient];
    if (block < 0) return 0;
    u64 base = ((const u64*)pages.bases)[(row.layer - pages.first_layer) * shape.parts.divisor + row.part];
    return base + block * pages.block_stride + (row.head - pages.first_head) * pages.head_stride +
           place.rest * pages.token_stride;
}

// The address of access `index` of the row that begins at `row`; `width` is the bytes of an access.
KV_INLINE u64 access_address(const Pages& pages, u64 row, u32 index, u32 width) {
    Divided unit = divide(index, pages.unit);
    return row + unit.quotient * pages.unit_stride + unit.rest * width;
}
