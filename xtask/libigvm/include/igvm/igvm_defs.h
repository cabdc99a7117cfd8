/* The IGVM format (IGVM specification, crate igvm_defs 0.5), as far as QEMU
 * reads it. Fields are little endian, as is every host that QEMU loads such
 * files on. */
#ifndef ASSAY_IGVM_DEFS_H
#define ASSAY_IGVM_DEFS_H

#include <stdint.h>

/* Types of variable headers. */
typedef uint32_t IgvmVariableHeaderType;
#define IGVM_VHT_SUPPORTED_PLATFORM 0x1
#define IGVM_VHT_GUEST_POLICY 0x101
#define IGVM_VHT_PARAMETER_AREA 0x301
#define IGVM_VHT_PAGE_DATA 0x302
#define IGVM_VHT_PARAMETER_INSERT 0x303
#define IGVM_VHT_VP_CONTEXT 0x304
#define IGVM_VHT_REQUIRED_MEMORY 0x305
#define IGVM_VHT_VP_COUNT_PARAMETER 0x307
#define IGVM_VHT_MADT 0x309
#define IGVM_VHT_SNP_ID_BLOCK 0x30B
#define IGVM_VHT_MEMORY_MAP 0x30C
#define IGVM_VHT_ENVIRONMENT_INFO_PARAMETER 0x313

typedef uint8_t IgvmPlatformType;
#define IGVM_PLATFORM_TYPE_NATIVE 0x0
#define IGVM_PLATFORM_TYPE_VSM_ISOLATION 0x1
#define IGVM_PLATFORM_TYPE_SEV_SNP 0x2
#define IGVM_PLATFORM_TYPE_TDX 0x3
#define IGVM_PLATFORM_TYPE_SEV 0x4
#define IGVM_PLATFORM_TYPE_SEV_ES 0x5

typedef uint16_t IgvmPageDataType;
#define IGVM_PAGE_DATA_TYPE_NORMAL 0x0
#define IGVM_PAGE_DATA_TYPE_SECRETS 0x1
#define IGVM_PAGE_DATA_TYPE_CPUID_DATA 0x2
#define IGVM_PAGE_DATA_TYPE_CPUID_XF 0x3

typedef uint16_t IgvmMemoryMapEntryType;
#define IGVM_MEMORY_MAP_ENTRY_TYPE_MEMORY 0x0
#define IGVM_MEMORY_MAP_ENTRY_TYPE_PLATFORM_RESERVED 0x1
#define IGVM_MEMORY_MAP_ENTRY_TYPE_PERSISTENT 0x2

/* Before every header's body. */
typedef struct {
    IgvmVariableHeaderType typ;
    uint32_t length;
} IGVM_VHS_VARIABLE_HEADER;

typedef struct {
    uint32_t compatibility_mask;
    uint8_t highest_vtl;
    IgvmPlatformType platform_type;
    uint16_t platform_version;
    uint64_t shared_gpa_boundary;
} IGVM_VHS_SUPPORTED_PLATFORM;

typedef struct {
    uint64_t policy;
    uint32_t compatibility_mask;
    uint32_t reserved;
} IGVM_VHS_GUEST_POLICY;

typedef struct {
    uint64_t number_of_bytes;
    uint32_t parameter_area_index;
    uint32_t file_offset;
} IGVM_VHS_PARAMETER_AREA;

typedef struct {
    uint32_t is_2mb_page : 1;
    uint32_t unmeasured : 1;
    uint32_t shared : 1;
    uint32_t reserved : 29;
} IgvmPageDataFlags;

typedef struct {
    uint64_t gpa;
    uint32_t compatibility_mask;
    uint32_t file_offset;
    IgvmPageDataFlags flags;
    IgvmPageDataType data_type;
    uint16_t reserved;
} IGVM_VHS_PAGE_DATA;

typedef struct {
    uint64_t gpa;
    uint32_t compatibility_mask;
    uint32_t parameter_area_index;
} IGVM_VHS_PARAMETER_INSERT;

typedef struct {
    uint32_t parameter_area_index;
    uint32_t byte_offset;
} IGVM_VHS_PARAMETER;

/* Without padding at its end, unlike the others. */
typedef struct __attribute__((packed)) {
    uint64_t gpa;
    uint32_t compatibility_mask;
    uint32_t file_offset;
    uint16_t vp_index;
    uint16_t reserved;
} IGVM_VHS_VP_CONTEXT;

typedef struct {
    uint32_t vtl2_protectable : 1;
    uint32_t reserved : 31;
} IgvmRequiredMemoryFlags;

typedef struct {
    uint64_t gpa;
    uint32_t compatibility_mask;
    uint32_t number_of_bytes;
    IgvmRequiredMemoryFlags flags;
    uint32_t reserved;
} IGVM_VHS_REQUIRED_MEMORY;

typedef struct {
    uint64_t starting_gpa_page_number;
    uint64_t number_of_pages;
    IgvmMemoryMapEntryType entry_type;
    uint16_t flags;
    uint32_t reserved;
} IGVM_VHS_MEMORY_MAP_ENTRY;

typedef struct {
    uint32_t memory_is_shared : 1;
    uint32_t reserved : 31;
} IgvmEnvironmentInfo;

typedef struct {
    uint8_t r_comp[72];
    uint8_t s_comp[72];
} IGVM_VHS_SNP_ID_BLOCK_SIGNATURE;

typedef struct {
    uint32_t curve;
    uint32_t reserved;
    uint8_t qx[72];
    uint8_t qy[72];
} IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY;

typedef struct {
    uint32_t compatibility_mask;
    uint8_t author_key_enabled;
    uint8_t reserved[3];
    uint8_t ld[48];
    uint8_t family_id[16];
    uint8_t image_id[16];
    uint32_t version;
    uint32_t guest_svn;
    uint32_t id_key_algorithm;
    uint32_t author_key_algorithm;
    IGVM_VHS_SNP_ID_BLOCK_SIGNATURE id_key_signature;
    IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY id_public_key;
    IGVM_VHS_SNP_ID_BLOCK_SIGNATURE author_key_signature;
    IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY author_public_key;
} IGVM_VHS_SNP_ID_BLOCK;

/* Checked by the compiler here and against the crate's types by the tests of
 * assay-libigvm. */
_Static_assert(sizeof(IGVM_VHS_VARIABLE_HEADER) == 8, "size");
_Static_assert(sizeof(IGVM_VHS_SUPPORTED_PLATFORM) == 16, "size");
_Static_assert(sizeof(IGVM_VHS_GUEST_POLICY) == 16, "size");
_Static_assert(sizeof(IGVM_VHS_PARAMETER_AREA) == 16, "size");
_Static_assert(sizeof(IGVM_VHS_PAGE_DATA) == 24, "size");
_Static_assert(sizeof(IGVM_VHS_PARAMETER_INSERT) == 16, "size");
_Static_assert(sizeof(IGVM_VHS_PARAMETER) == 8, "size");
_Static_assert(sizeof(IGVM_VHS_VP_CONTEXT) == 20, "size");
_Static_assert(sizeof(IGVM_VHS_REQUIRED_MEMORY) == 24, "size");
_Static_assert(sizeof(IGVM_VHS_MEMORY_MAP_ENTRY) == 24, "size");
_Static_assert(sizeof(IGVM_VHS_SNP_ID_BLOCK) == 696, "size");

#endif
