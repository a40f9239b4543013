// A libvulkan.so.1 in front of the real one (REAL_VULKAN) that refuses device memory over a limit, as a full GPU does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define VISIBLE __attribute__((visibility("default")))
#define OUT_OF_DEVICE_MEMORY -2
#define MOST (1 << 17)

typedef void (*Function)(void);
typedef struct { int type; const void *next; uint64_t size; uint32_t memory_type; } AllocateInfo;
typedef int (*Allocate)(void *, const AllocateInfo *, const void *, uint64_t *);
typedef void (*Free)(void *, uint64_t, const void *);

static Function (*real_instance)(void *, const char *), (*real_device)(void *, const char *);
static Allocate real_allocate;
static Free real_free;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct { uint64_t memory, size; } held[MOST];
static int count;
static uint64_t used, limit = UINT64_MAX;

VISIBLE uint64_t memory_used(void) { return used; }
VISIBLE void limit_memory(uint64_t bytes) { limit = bytes; }

static int allocate(void *device, const AllocateInfo *info, const void *allocator, uint64_t *memory) {
    pthread_mutex_lock(&mutex);
    int result = used + info->size > limit ? OUT_OF_DEVICE_MEMORY : real_allocate(device, info, allocator, memory);
    if (result == 0 && count < MOST) {
        held[count].memory = *memory;
        held[count++].size = info->size;
        used += info->size;
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

static void release(void *device, uint64_t memory, const void *allocator) {
    pthread_mutex_lock(&mutex);
    for (int index = count - 1; index >= 0; index--) {
        if (held[index].memory == memory) {
            used -= held[index].size;
            held[index] = held[--count];
            break;
        }
    }
    pthread_mutex_unlock(&mutex);
    real_free(device, memory, allocator);
}

static Function device_function(void *device, const char *name);

static Function replaced(const char *name, Function found) {
    if (found && !strcmp(name, "vkAllocateMemory")) {
        real_allocate = (Allocate)found;
        return (Function)allocate;
    }
    if (found && !strcmp(name, "vkFreeMemory")) {
        real_free = (Free)found;
        return (Function)release;
    }
    if (found && !strcmp(name, "vkGetDeviceProcAddr")) {
        real_device = (void *)found;
        return (Function)device_function;
    }
    return found;
}

static Function device_function(void *device, const char *name) { return replaced(name, real_device(device, name)); }

VISIBLE Function vkGetInstanceProcAddr(void *instance, const char *name) {
    if (!real_instance) {
        real_instance = (void *)dlsym(dlopen(getenv("REAL_VULKAN"), RTLD_NOW | RTLD_LOCAL), "vkGetInstanceProcAddr");
    }
    if (!strcmp(name, "vkGetInstanceProcAddr")) {
        return (Function)vkGetInstanceProcAddr;
    }
    return replaced(name, real_instance(instance, name));
}
