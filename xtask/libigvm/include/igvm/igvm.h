/* Functions of the igvm crate's C API (feature igvm-c), as QEMU uses them. */
#ifndef ASSAY_IGVM_H
#define ASSAY_IGVM_H

#include <stdint.h>
#include <igvm/igvm_defs.h>

/* A file or a buffer of one; negative: an IGVMAPI_* result. */
typedef int32_t IgvmHandle;

#define IGVMAPI_OK 0
#define IGVMAPI_INVALID_PARAMETER (-1)
#define IGVMAPI_NO_DATA (-2)
#define IGVMAPI_INVALID_FILE (-3)
#define IGVMAPI_INVALID_HANDLE (-4)

typedef uint32_t IgvmHeaderSection;
#define IGVM_HEADER_SECTION_PLATFORM 0
#define IGVM_HEADER_SECTION_INITIALIZATION 1
#define IGVM_HEADER_SECTION_DIRECTIVE 2

IgvmHandle igvm_new_from_binary(const uint8_t *data, uint32_t len);
void igvm_free(IgvmHandle handle);
int32_t igvm_header_count(IgvmHandle handle, IgvmHeaderSection section);
int32_t igvm_get_header_type(IgvmHandle handle, IgvmHeaderSection section,
                             uint32_t index);
IgvmHandle igvm_get_header(IgvmHandle handle, IgvmHeaderSection section,
                           uint32_t index);
IgvmHandle igvm_get_header_data(IgvmHandle handle, IgvmHeaderSection section,
                                uint32_t index);
const uint8_t *igvm_get_buffer(IgvmHandle handle, IgvmHandle buffer);
int32_t igvm_get_buffer_size(IgvmHandle handle, IgvmHandle buffer);
void igvm_free_buffer(IgvmHandle handle, IgvmHandle buffer);

#endif
