#include "head.h"

const struct text header_names[H_COUNT] = {
    [H_ACCEPT] = {"accept", 6},
    [H_ACCEPT_ENCODING] = {"accept-encoding", 15},
    [H_SDK_INVOCATION] = {"amz-sdk-invocation-id", 21},
    [H_SDK_REQUEST] = {"amz-sdk-request", 15},
    [H_AUTHORIZATION] = {"authorization", 13},
    [H_CONNECTION] = {"connection", 10},
    [H_CONTENT_LENGTH] = {"content-length", 14},
    [H_CONTENT_TYPE] = {"content-type", 12},
    [H_EXPECT] = {"expect", 6},
    [H_HOST] = {"host", 4},
    [H_RANGE] = {"range", 5},
    [H_USER_AGENT] = {"user-agent", 10},
    [H_CHECKSUM_CRC64NVME] = {"x-amz-checksum-crc64nvme", 24},
    [H_CHECKSUM_MODE] = {"x-amz-checksum-mode", 19},
    [H_CONTENT_SHA256] = {"x-amz-content-sha256", 20},
    [H_AMZ_DATE] = {"x-amz-date", 10},
    [H_SDK_CHECKSUM] = {"x-amz-sdk-checksum-algorithm", 28},
};
