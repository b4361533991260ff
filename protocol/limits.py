"""How large and how many anything on the wire may be.

A bound stands here once and is enforced where bytes enter (`frames`, `messages`, `values`). Sizes in bytes.
"""

from typing import Final

#: Raised by one whenever an older peer could misread a newer one.
WIRE_VERSION: Final = 1

#: Arrays up to this size ride inside the values; larger ones get a frame of their own. Measured: inside is
#: 10-15 % faster for small arrays, a frame of its own saves copies for large ones.
INLINE_ARRAY_BYTES: Final = 16 * 1024

#: What msgpack's packer reserves to begin with. Its own default of 1 MiB comes from the system anew for every
#: message (20 us each, page faults included); this comes from the heap, and grows where a value needs it.
PACKER_BYTES: Final = 4096

#: One header frame: fixed fields and the values of a request, arrays above `INLINE_ARRAY_BYTES` not counted.
MAX_HEADER_BYTES: Final = 64 << 20
#: What a header holds, lists inside of lists counted: each is an object in the memory of whoever receives it.
MAX_HEADER_ITEMS: Final = 1 << 20
#: The encoded value inside a header; what is left is for the other fields.
MAX_BODY_BYTES: Final = MAX_HEADER_BYTES - 4096
#: Storages of a model, of which each is five items of the header that takes its manifest to workers; 209,000 were
#: found to travel, and the rest of that header has items too.
MAX_STORAGES: Final = 200_000
#: The skeleton in that header, beside the manifest of so many.
MAX_SKELETON_BYTES: Final = MAX_HEADER_BYTES - (8 << 20)
#: One frame that holds a large array.
MAX_BUFFER_BYTES: Final = 16 << 30
#: Frames that follow one header.
MAX_BUFFERS: Final = 4096
#: File descriptors that one message may carry; Linux allows 253 (SCM_MAX_FD).
MAX_FDS: Final = 253
#: ... and how many more may come in messages before it.
MAX_FDS_AHEAD: Final = 64 * MAX_FDS

#: Names of models and methods.
MAX_NAME_BYTES: Final = 256
#: Dimensions of an array.
MAX_DIMENSIONS: Final = 64
#: Tuples nested in one another. Lists and maps are bounded by msgpack itself, at some hundreds.
MAX_DEPTH: Final = 100
#: Characters of an error's message, and of each of its details; what is longer is cut in its middle.
MAX_ERROR_TEXT: Final = 64_000

#: What one client may have sent and not yet got answered.
MAX_REQUESTS_PER_CLIENT: Final = 100_000
#: Answers that wait for one slow client before it is disconnected, in messages and in bytes.
MAX_OUTBOX_MESSAGES: Final = 100_000
MAX_OUTBOX_BYTES: Final = 1 << 30
#: Clients connected at once.
MAX_CLIENTS: Final = 4096

#: What one request may ask for: calls in one, items ahead of a reader, deaths of workers that it survives, levels
#: of priority above and below 0 (one is worth a second of waiting), characters of a session's name.
MAX_CALLS: Final = 65_536
MAX_CREDIT: Final = 1 << 20
MAX_RETRIES: Final = 100
MAX_PRIORITY: Final = 100
MAX_SESSION_CHARACTERS: Final = 128

#: What a model may ask for: calls in a batch, how long one waits, its part of the workers' time beside others'.
MAX_BATCH: Final = 4096
MAX_WAIT_MS: Final = 60_000
MAX_SHARE: Final = 1e6
#: Workers of a pool. Each is a process: more are surely a mistake.
MAX_WORKERS: Final = 1024
#: ... and devices of one pool.
MAX_DEVICES: Final = 64
