"""The actions of S3, by what they act on: what a bucket policy may name.

https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html, without those of access points,
batch jobs, the account and directory buckets.
"""

from __future__ import annotations

OBJECT_ACTIONS = frozenset(
    {
        *("s3:GetObject", "s3:GetObjectAcl", "s3:GetObjectAttributes", "s3:GetObjectLegalHold"),
        *("s3:GetObjectRetention", "s3:GetObjectTagging", "s3:GetObjectTorrent", "s3:GetObjectVersion"),
        *("s3:GetObjectVersionAcl", "s3:GetObjectVersionAttributes", "s3:GetObjectVersionForReplication"),
        *("s3:GetObjectVersionTagging", "s3:GetObjectVersionTorrent", "s3:ListMultipartUploadParts"),
        *("s3:AbortMultipartUpload", "s3:BypassGovernanceRetention", "s3:DeleteObject", "s3:DeleteObjectTagging"),
        *("s3:DeleteObjectVersion", "s3:DeleteObjectVersionTagging", "s3:InitiateReplication"),
        *("s3:ObjectOwnerOverrideToBucketOwner", "s3:PutObject", "s3:PutObjectAcl", "s3:PutObjectLegalHold"),
        *("s3:PutObjectRetention", "s3:PutObjectTagging", "s3:PutObjectVersionAcl", "s3:PutObjectVersionTagging"),
        *("s3:ReplicateDelete", "s3:ReplicateObject", "s3:ReplicateTags", "s3:RestoreObject"),
    }
)

BUCKET_ACTIONS = frozenset(
    {
        *("s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListBucketVersions", "s3:CreateBucket"),
        *("s3:DeleteBucket", "s3:DeleteBucketPolicy", "s3:DeleteBucketWebsite", "s3:GetBucketLocation"),
        *("s3:GetBucketPolicy", "s3:GetBucketPolicyStatus"),
        *(
            f"s3:{verb}{setting}"
            for verb in ("Get", "Put")
            for setting in (
                *("AccelerateConfiguration", "AnalyticsConfiguration", "BucketAcl", "BucketCORS", "BucketLogging"),
                *("BucketNotification", "BucketObjectLockConfiguration", "BucketOwnershipControls"),
                *("BucketPublicAccessBlock", "BucketRequestPayment", "BucketTagging", "BucketVersioning"),
                *("BucketWebsite", "EncryptionConfiguration", "IntelligentTieringConfiguration"),
                *("InventoryConfiguration", "LifecycleConfiguration", "MetricsConfiguration"),
                "ReplicationConfiguration",
            )
        ),
        "s3:PutBucketPolicy",
    }
)

ACTIONS = OBJECT_ACTIONS | BUCKET_ACTIONS

READ_ACTIONS = frozenset(
    {
        *("s3:GetObject", "s3:GetObjectVersion", "s3:GetObjectTagging", "s3:GetObjectAttributes", "s3:GetObjectAcl"),
        *("s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketLocation"),
    }
)
"""What may be granted to others. Nobody but the owner writes into a bucket."""

LISTINGS = frozenset({"s3:ListBucket", "s3:ListBucketVersions"})
"""Actions that come with a prefix and a delimiter."""

TAGGED_OBJECT_ACTIONS = frozenset(
    {
        *("s3:GetObject", "s3:GetObjectAcl", "s3:GetObjectAttributes", "s3:GetObjectTagging", "s3:GetObjectVersion"),
        *("s3:GetObjectVersionAcl", "s3:GetObjectVersionAttributes", "s3:GetObjectVersionTagging", "s3:PutObjectAcl"),
        *("s3:PutObjectTagging", "s3:PutObjectVersionAcl", "s3:PutObjectVersionTagging", "s3:DeleteObjectTagging"),
        *("s3:DeleteObjectVersionTagging", "s3:RestoreObject"),
    }
)
"""Actions on an object that is there already, which is to be read before its tags can be held against a condition."""
