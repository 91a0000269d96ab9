"""The dispatcher's settings file with every setting, its default and what it is for."""

CERTIFICATES_EXAMPLE = """\
[tls]
# Certificates of endpoints and tunnels, files on this machine, PEM: one with its chain, and its key. The
# first is shown to clients that name no host. They are read again when they change.
# certificates = [{ cert = "/etc/tls/wildcard.pem", key = "/etc/tls/wildcard.key" }]
certificates = []
# Seconds between looks at them.
interval = 5.0

[pki]
# Certificates of endpoints and tunnels from a PKI engine of Vault or OpenBao, renewed when two thirds of
# their time are over.
address = ""
# Empty means the VAULT_TOKEN of the environment, else what token_file holds, which is read at every use.
token = ""
token_file = ""
namespace = ""
ca_file = ""
mount = "pki"
# The role that issues them, and the host names: "*.modal.example.com". The first is shown to clients that
# name no host.
role = ""
names = []
# Whether the custom domains of endpoints get certificates as well.
custom_domains = false
# How long they are good for, "72h"; empty means what the role says.
ttl = ""
"""
"""The part that gateways in processes of their own have as well."""

EXAMPLE = (
    """\
# The dispatcher's configuration. Every value shown is the default.

# Where it listens. "unix:///path.sock" is possible too.
listen = "http://127.0.0.1:8520"

# For "https://": its certificate, with the chain, and key, in PEM. Both are read at start.
tls_cert = ""
tls_key = ""

# The address that containers dial and fetch artifacts from; empty means `listen`. On a cluster it must
# be reachable from every node, so give the host's address here.
advertise = ""

# Where state lives: store.db, blobs/, logs/.
home = "/var/lib/modal-nomad"

# Where rows live: empty for store.db in `home`, or "postgresql://user@host:5432/database", for dispatchers
# that share it: one is at work, the others stand by. The password may be in PGPASSWORD or PGPASSFILE.
store = ""

# What an acknowledged write outlives: "power" is a power cut or a crash of the machine (each group of writes
# is synced to the disk), "process" the end of the dispatcher alone, however sudden. PostgreSQL always syncs.
durability = "power"

# "nomad" runs containers as Nomad jobs, "local" as processes of this machine.
engine = "nomad"

# Who may call: "nomad" checks the caller's token with Nomad, "token" knows tokens made here,
# "none" lets everybody in (for a development agent on loopback only).
auth = "nomad"

# Seconds that a client may be gone before its ephemeral Apps are stopped and its calls cancelled. The
# embedded dispatcher takes it from MODAL_CLIENT_GRACE, or client_grace of the profile, when it starts.
client_grace = 10.0

# Days that the results of spawned calls are kept.
result_days = 7.0

# Code, runtimes and large values that nothing refers to any more are removed when they are this many
# seconds old, and looked for so often. The age must be longer than any upload takes.
garbage_age = 86400.0
garbage_interval = 3600.0

# The most containers of one Function that names no max_containers; 0 means by the engine: the machine's
# cores (at least 4) locally, four a core of the cluster (at least 100) on Nomad. Below that, a Function
# whose inputs compute gets about one a core, one whose inputs wait gets many.
default_max_containers = 0

[nomad]
# Nomad's HTTP API; empty means the NOMAD_ADDR of the environment. Inside an allocation the task API
# socket works: "unix:///secrets/api.sock".
address = ""
# The token for dispatching containers; empty means the NOMAD_TOKEN of the environment.
token = ""

[vault]
# Vault or OpenBao, for Secrets; an empty address means none: then a dispatcher with engine = "local" keeps
# them in an encrypted file of its home, and one on Nomad takes none.
address = ""
# The token that Secrets are written with; empty means the VAULT_TOKEN of the environment, else what
# token_file holds, which is read at every use.
token = ""
token_file = ""
namespace = ""
ca_file = ""
# Secrets are at <mount>/<prefix>/<environment>/<name>, in an engine of KV version 2.
mount = "secret"
prefix = "modal"
# The JWT role that allocations log in with; empty means the default one of Nomad's own [vault] settings.
role = ""

[s3]
# A bucket of any S3-compatible service for blobs: code, large values, chunks of Volumes. An empty bucket
# means a directory of `home`. It needs `pip install 'modal-nomad[s3]'`.
bucket = ""
# The service, such as "https://minio.example.org:9000"; empty means AWS.
endpoint = ""
# Empty means AWS_REGION of the environment, else "us-east-1".
region = ""
# What the keys of blobs begin with; whatever else is in the bucket is let be.
prefix = "blobs/"
# Empty means what AWS's own tools look for: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a shared
# credentials file, AWS_WEB_IDENTITY_TOKEN_FILE, the instance's role.
access_key_id = ""
secret_access_key = ""
# Whether the bucket stands in the path of a URL: a service of one's own mostly wants it so.
path_style = false
ca_file = ""
# Whether containers and clients fetch from the bucket themselves, by links that are good for 15 minutes;
# where they cannot reach it they ask the dispatcher after all.
redirect = false

[namespaces]
# Each environment is a Nomad namespace of its name, made with the first thing that is put into it, where the
# caller's token may; "main" is the namespace under [render]. Say here which are called otherwise, as
# prod = "batch"; a line "*" = "default" has all others share one.

[nfs]
# The directory that all nodes share, for NetworkFileSystems: an NFS mount, say. Where this dispatcher has it
# mounted; empty means a directory of its home with engine = "local", else none: then containers may use
# them, and nobody reads or writes their files from outside.
directory = ""
# Where the nodes have it mounted; empty means the same path.
node_directory = ""
# Or a Nomad volume that has it, which allocations of the exec driver get mounted, and its type: "host" or
# "csi" (which must allow multi-node-multi-writer).
volume = ""
volume_type = "host"

[proxies]
# Which nodes have the egress address of a modal.Proxy.from_name("office"), by their pool, their meta or both:
# [proxies.office]
# node_pool = "egress"
# node_meta = { egress = "office" }

[images]
# What builds container images: "docker", "podman" or "buildah"; empty takes the first of them that is there.
builder = ""
# Where built images are pushed to, "registry.example.org:5000/modal"; empty keeps them on this machine, which
# only engine = "local" can do. Its user, and the file with the password.
repository = ""
username = ""
password_file = ""
# Whether that registry may be without TLS (docker's daemon has a setting of its own for this).
insecure = false
# The network that build steps have, such as "host"; empty is the builder's default.
network = ""
# The Nomad job that builds on a cluster: jobspecs/image-builder.nomad.hcl.
job = "image-builder"
# What the image builder installs, for clients that ask for no version: docs/images.md.
version = "2025.06"
# What debian_slim and micromamba start from, and the image that has add_python's interpreter in /python; with
# {python} for the version. Empty: python:{python}-slim-bookworm and mambaorg/micromamba of Docker Hub, and an
# interpreter that uv fetches.
debian_slim = ""
micromamba = ""
python = ""

[web]
# Where web endpoints are served: "http://0.0.0.0:8080", or "https://0.0.0.0:8443" with a certificate of
# [tls], [pki] or tls_cert; empty: nowhere. The embedded dispatcher takes a port of 127.0.0.1 of its own.
listen = ""
# What the host names of endpoints end in: <workspace>--<app>-<function>.<domain>. Its DNS, a wildcard, leads
# here, or to what stands in front of this.
domain = "localhost"
# What all of these host names begin with; may be empty.
workspace = ""
# How URLs begin as users see them, where something stands in front: "https://{label}.modal.example.com".
url = ""
# Addresses of what stands in front, whose X-Forwarded fields are believed.
trusted_proxies = []
# Requests to one Function that wait for a container, at most; and open connections.
max_waiting = 1000
max_clients = 10000
# Seconds until a request without an answer is redirected to its pending result.
answer_seconds = 150.0
# What gateways in processes of their own (`modal-nomad gateway`) prove themselves with: at least 16
# characters, the same for all of them and all dispatchers, here or in a file. Empty: there are none.
gateway_token = ""
gateway_token_file = ""
# Whether the jobs of web Functions register services in Consul, which needs the [consul] settings of Nomad's
# agents: what is checked ("http", "tcp"), how often (seconds), and in which namespace (Enterprise).
consul = false
consul_check = "http"
consul_check_interval = 10.0
consul_namespace = ""
# Whether containers take requests from a proxy of your own as well, which has no key: then anybody does who
# reaches a node's dynamic ports. Those whose endpoints ask for a proxy auth token do not.
edge = false
# What that proxy may take (seconds) to hear from Consul that a container takes requests, or no longer does:
# the interval of the check, and its own. Old versions go so long after new ones have come, and what Nomad
# stops itself (a drain of its node) is told to end so long after it has left Consul.
edge_seconds = 30.0

[tunnels]
# The name or address that tunnels to containers (modal.forward) are reached at; empty: there are none. The
# embedded dispatcher has them on this machine alone.
host = ""
# The address that they listen at, and the ports that they may have, as "30000-30999"; empty means any free
# one. TLS shows the certificates of [tls], [pki] and tls_cert; where there are none, one that the dispatcher
# signed itself.
listen = "0.0.0.0"
ports = ""
# Tunnels at a time, connections through one of them, and TLS handshakes under way in all of them together.
max_tunnels = 1000
max_connections = 1000
max_handshakes = 1000
# What the host names of tunnels end in, where its DNS, a wildcard, leads here: https://<name>.<domain>. All
# that speak TLS are at one port then, tls_port, told apart by name (SNI). Empty: each has a port of its own.
domain = ""
tls_port = 443
# Whether gateways in processes of their own listen for tunnels, those that have [tunnels] too, and not the
# dispatcher: host and domain lead to all of them.
gateways = false

"""
    + CERTIFICATES_EXAMPLE
    + """
[render]
# How Functions become jobs; see modal_nomad.render.RenderSettings for all of them.
driver = "raw_exec"
namespace = "default"
node_pool = "default"
datacenters = ["*"]
python = "python3"
"""
)
