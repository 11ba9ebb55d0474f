/* crc64nvme, as S3 and kvgate/memory/digest.py take it of every body: CRC-64/NVME, reflected, all ones in and out. */

#ifndef KVGATE_CRC64NVME_H
#define KVGATE_CRC64NVME_H

#include <stddef.h>
#include <stdint.h>

/* Choose the fastest way that this processor has. Once, before any of the others is called from any thread. */
void kvgate_crc64nvme_begin(void);

/* The value of the bytes that `crc` is of (0 for none) and the `nbytes` at `data` behind them. */
uint64_t kvgate_crc64nvme(uint64_t crc, const void *data, size_t nbytes);

/* The value of two runs of bytes, one behind the other, from their own values. */
uint64_t kvgate_crc64nvme_combine(uint64_t first, uint64_t second, uint64_t second_nbytes);

/* The name of a way that this processor has, the fastest of which is number 0; NULL where there are no more. */
const char *kvgate_crc64nvme_path(unsigned number);

/* As kvgate_crc64nvme, by the way of that number, which has a name. */
uint64_t kvgate_crc64nvme_by(unsigned number, uint64_t crc, const void *data, size_t nbytes);

#endif
