"""Where blobs are kept: one contract, in a directory or in an S3-compatible bucket."""

from modal_nomad.dispatcher.blobs.base import BlobError, BlobMissing, BlobStore, BlobStoreError, BlobStoreFull
from modal_nomad.dispatcher.blobs.directory import DirectoryBlobs

__all__ = ["BlobError", "BlobMissing", "BlobStore", "BlobStoreError", "BlobStoreFull", "DirectoryBlobs"]
