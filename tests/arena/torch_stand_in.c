/* Built as libc10.so: what it asks for, the arena takes for torch's. */
#include <stdlib.h>

int allocate_as_torch(void **place, size_t alignment, size_t size_bytes)
{
    int error = posix_memalign(place, alignment, size_bytes);
    __asm__("" ::: "memory"); /* no tail call, or the return address would be the caller's */
    return error;
}
