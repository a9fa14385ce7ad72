/* An NVTX tool that writes down what it hears: one line of JSON per call.

   On its first call NVTX loads the shared object that NVTX_INJECTION64_PATH names and hands it a
   table of function pointers to fill.  This one fills in domains, registered strings, categories,
   push/pop ranges and marks, and, of the payload extension, the registration of struct layouts.
   What is heard goes to the file that HSPEC_NVTX_LOG names, times in ns of CLOCK_MONOTONIC, the
   clock of Python's perf_counter_ns on Linux.

   The declarations repeat NVTX 3's binary interface, so that no header of it is needed.  Types of
   struct fields are numbered there: 15 int32, 16 uint32, 17 int64, 18 uint64, 43 float32,
   44 float64; a number from 2^32 on is another struct. */

#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CALLBACKS = 1, CORE2 = 5, PAYLOAD_MODULE = 2, REGISTER_SCHEMA = 0 };
enum { MARK = 1, PUSH = 4, POP = 5, NAME_CATEGORY = 8, REGISTER_STRING = 10, CREATE_DOMAIN = 12 };
enum { MESSAGE_ASCII = 1, MESSAGE_REGISTERED = 3 };
enum { UINT64 = 1, INT64 = 2, DOUBLE = 3, UINT32 = 4, INT32 = 5, FLOAT = 6 };
static const int32_t STRUCT = (int32_t)0xDFBD0009;
static const uint64_t FIRST_SCHEMA = (uint64_t)1 << 32;
enum { ARRAY_FLAGS = 7 << 4, MASK_STATIC_ID = 1 << 8, MOST_SCHEMAS = 256, MOST_ENTRIES = 64 };

typedef void (*Function)(void);
typedef struct {
    size_t struct_size;
    int (*module_functions)(int module, Function ***table, unsigned *size);
} Callbacks;
typedef struct {
    size_t id, n_slots;
    intptr_t *slots;
} Segment;
typedef struct {
    uint16_t version, struct_size, module, compatible;
    size_t n_segments;
    Segment *segments;
} Module;
typedef struct {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, n_payloads;
    union { uint64_t u64; int64_t i64; double f64; uint32_t u32; int32_t i32; float f32; } payload;
    int32_t message_type;
    const char *message; /* a registered string's handle is its text here */
} Attributes;
typedef struct { uint64_t schema; size_t size; const char *bytes; } Payload;
typedef struct {
    uint64_t flags, type;
    const char *name, *description;
    uint64_t array, offset;
    const void *semantics, *reserved;
} Entry;
typedef struct {
    uint64_t mask;
    const char *name;
    uint64_t type, flags;
    const Entry *entries;
    size_t n_entries, size, align;
    uint64_t id;
} Layout;

static FILE *log_file;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { uint64_t id; size_t n; Entry entries[MOST_ENTRIES]; } schemas[MOST_SCHEMAS];
static size_t n_schemas;

static void text(const char *value) {
    if (!value) { fputs("null", log_file); return; }
    fputc('"', log_file);
    for (; *value; value++) {
        if (*value == '"' || *value == '\\') fprintf(log_file, "\\%c", *value);
        else if ((unsigned char)*value < 32) fprintf(log_file, "\\u%04x", *value);
        else fputc(*value, log_file);
    }
    fputc('"', log_file);
}

static void begin(const char *call, const char *domain) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&lock);
    fprintf(log_file, "{\"call\": \"%s\", \"ns\": %" PRId64 ", \"thread\": %ld, \"domain\": ", call,
            (int64_t)now.tv_sec * 1000000000 + now.tv_nsec, syscall(SYS_gettid));
    text(domain ? domain : "");
}

static void finish(void) {
    fputs("}\n", log_file);
    pthread_mutex_unlock(&lock);
}

/* a struct's fields; what is no number, lies in an array or behind the end is null */
static void fields(uint64_t schema, const char *bytes, size_t size);

static void number(uint64_t type, const char *at, size_t left) {
    int64_t i = 0;
    double f = 0;
    float g = 0;
    size_t width = type == 17 || type == 18 || type == 44 ? 8 : 4;
    if (type >= FIRST_SCHEMA) { fields(type, at, left); return; }
    if (left < width) type = 0;
    switch (type) {
    case 15: memcpy(&i, at, 4); fprintf(log_file, "%" PRId32, (int32_t)i); break;
    case 16: memcpy(&i, at, 4); fprintf(log_file, "%" PRId64, i); break;
    case 17: memcpy(&i, at, 8); fprintf(log_file, "%" PRId64, i); break;
    case 18: memcpy(&i, at, 8); fprintf(log_file, "%" PRIu64, (uint64_t)i); break;
    case 43: memcpy(&g, at, 4); fprintf(log_file, "%.9g", g); break;
    case 44: memcpy(&f, at, 8); fprintf(log_file, "%.17g", f); break;
    default: fputs("null", log_file);
    }
}

static void fields(uint64_t schema, const char *bytes, size_t size) {
    for (size_t s = 0; s < n_schemas; s++) {
        if (schemas[s].id != schema) continue;
        for (size_t i = 0; i < schemas[s].n; i++) {
            const Entry *entry = &schemas[s].entries[i];
            int array = (entry->flags & ARRAY_FLAGS) != 0 || entry->offset > size;
            fputs(i ? ", " : "{", log_file);
            text(entry->name ? entry->name : "");
            fputs(": ", log_file);
            number(array ? 0 : entry->type, bytes + entry->offset, size - entry->offset);
        }
        fputs(schemas[s].n ? "}" : "{}", log_file);
        return;
    }
    fputs("null", log_file);
}

static void payload(const Attributes *event) {
    const Payload *data = (const Payload *)(uintptr_t)event->payload.u64;
    fprintf(log_file, ", \"payload_type\": %" PRId32 ", \"payload\": ", event->payload_type);
    if (event->payload_type == STRUCT) { fields(data->schema, data->bytes, data->size); return; }
    switch (event->payload_type) {
    case UINT64: fprintf(log_file, "%" PRIu64, event->payload.u64); break;
    case INT64: fprintf(log_file, "%" PRId64, event->payload.i64); break;
    case DOUBLE: fprintf(log_file, "%.17g", event->payload.f64); break;
    case UINT32: fprintf(log_file, "%" PRIu32, event->payload.u32); break;
    case INT32: fprintf(log_file, "%" PRId32, event->payload.i32); break;
    case FLOAT: fprintf(log_file, "%.9g", event->payload.f32); break;
    default: fputs("null", log_file);
    }
}

static void event(const char *call, const char *domain, const Attributes *what) {
    int readable = what->message_type == MESSAGE_ASCII || what->message_type == MESSAGE_REGISTERED;
    begin(call, domain);
    fputs(", \"message\": ", log_file);
    text(readable ? what->message : NULL);
    fprintf(log_file, ", \"registered\": %s, \"category\": %" PRIu32,
            what->message_type == MESSAGE_REGISTERED ? "true" : "false", what->category);
    payload(what);
    finish();
}

static void named(const char *call, const char *domain, const char *name) {
    begin(call, domain);
    fputs(", \"name\": ", log_file);
    text(name);
}

/* a domain's handle is its name, a registered string's its text; neither is ever freed */
static char *create_domain(const char *name) {
    named("domain", name, name);
    finish();
    return strdup(name);
}

static char *register_string(const char *domain, const char *string) {
    named("register", domain, string);
    finish();
    return strdup(string);
}

static void name_category(const char *domain, uint32_t id, const char *name) {
    named("category", domain, name);
    fprintf(log_file, ", \"category\": %" PRIu32, id);
    finish();
}

static void mark(const char *domain, const Attributes *what) { event("mark", domain, what); }

static int push(const char *domain, const Attributes *what) {
    event("push", domain, what);
    return 0;
}

static int pop(const char *domain) {
    begin("pop", domain);
    finish();
    return 0;
}

static uint64_t register_schema(const char *domain, const Layout *layout) {
    uint64_t id = 0;
    begin("schema", domain);
    if (n_schemas < MOST_SCHEMAS && layout->n_entries <= MOST_ENTRIES) {
        id = layout->mask & MASK_STATIC_ID ? layout->id : FIRST_SCHEMA + n_schemas;
        schemas[n_schemas].id = id;
        schemas[n_schemas].n = layout->n_entries;
        for (size_t i = 0; i < layout->n_entries; i++) {
            Entry *entry = &schemas[n_schemas].entries[i];
            *entry = layout->entries[i];
            entry->name = entry->name ? strdup(entry->name) : NULL;
        }
        n_schemas++;
    }
    fprintf(log_file, ", \"id\": %" PRIu64 ", \"n_entries\": %zu", id, layout->n_entries);
    finish();
    return id;
}

static int ready(void) {
    const char *path = getenv("HSPEC_NVTX_LOG");
    if (!log_file && path) log_file = fopen(path, "a");
    return log_file != NULL;
}

/* called once by every shared object that has NVTX within it */
int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t)) {
    static const struct { unsigned id; Function function; } ours[] = {
        {MARK, (Function)mark}, {PUSH, (Function)push}, {POP, (Function)pop},
        {NAME_CATEGORY, (Function)name_category}, {REGISTER_STRING, (Function)register_string},
        {CREATE_DOMAIN, (Function)create_domain},
    };
    const Callbacks *callbacks = export_table(CALLBACKS);
    Function **table = NULL;
    unsigned size = 0;
    if (!ready() || !callbacks || !callbacks->module_functions(CORE2, &table, &size)) return 0;
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        if (ours[i].id < size) *table[ours[i].id] = ours[i].function;
    return 1;
}

int InitializeInjectionNvtxExtension(Module *module) {
    if (module->module != PAYLOAD_MODULE || !module->n_segments || !ready()) return 0;
    module->segments[0].slots[REGISTER_SCHEMA] = (intptr_t)register_schema;
    return 1;
}
