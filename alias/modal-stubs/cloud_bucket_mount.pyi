from modal_nomad.cloud_bucket_mount import *
