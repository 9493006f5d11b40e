/* Two things that `bochscpu-python` lacks, to be loaded before it.
 *
 * Its processor is fixed to a model without VNNI; the library has newer ones, and the function that makes the fixed one is
 * looked up by name. And it wants names of the C library that came with glibc 2.38. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int find(struct dl_phdr_info *info, size_t size, void *found) {
    (void)size;
    if (strstr(info->dlpi_name, "/_bochscpu.") == NULL) return 0;
    *(const char **)found = info->dlpi_name;
    return 1;
}

/* In the place of `create_corei3_cnl_cpuid(BX_CPU_C *)`. */
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) {
    const char *path = NULL;
    dl_iterate_phdr(find, &path);
    void *library = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    void *(*create)(void *) = NULL;
    if (library != NULL) *(void **)&create = dlsym(library, "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C");
    if (create == NULL) {
        fputs("this bochscpu-python has no Sapphire Rapids\n", stderr);
        exit(1);
    }
    return create(cpu);
}

unsigned long long __isoc23_strtoull(const char *text, char **end, int base) {
    return strtoull(text, end, base);
}

int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int count = vsscanf(text, format, arguments);
    va_end(arguments);
    return count;
}
