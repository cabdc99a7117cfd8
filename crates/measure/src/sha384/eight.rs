//! Eight pages at a time: each of a register's eight 64-bit lanes holds a word of
//! another page, so all go through the rounds of SHA-512 together (FIPS 180-4,
//! section 6.4; SHA-384 differs in the initial value alone).

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_ror_epi64, _mm512_set_epi64, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_ternarylogic_epi64,
};
use std::array;

use assay_tee::Sha384Digest;
use assay_tee::page_info::PAGE_SIZE;

use super::Page;

/// Pages that are hashed together.
const LANES: usize = 8;
/// Bytes of a block.
const BLOCK: usize = 128;
/// Words of a block.
const WORDS: usize = 16;
/// Bits of a page, as the padding says.
const PAGE_BITS: i64 = 4096 * 8;

/// FIPS 180-4, section 5.3.4.
const INITIAL: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];

/// FIPS 180-4, section 4.2.3.
const ROUNDS: [u64; 80] = [
    0x428a_2f98_d728_ae22,
    0x7137_4491_23ef_65cd,
    0xb5c0_fbcf_ec4d_3b2f,
    0xe9b5_dba5_8189_dbbc,
    0x3956_c25b_f348_b538,
    0x59f1_11f1_b605_d019,
    0x923f_82a4_af19_4f9b,
    0xab1c_5ed5_da6d_8118,
    0xd807_aa98_a303_0242,
    0x1283_5b01_4570_6fbe,
    0x2431_85be_4ee4_b28c,
    0x550c_7dc3_d5ff_b4e2,
    0x72be_5d74_f27b_896f,
    0x80de_b1fe_3b16_96b1,
    0x9bdc_06a7_25c7_1235,
    0xc19b_f174_cf69_2694,
    0xe49b_69c1_9ef1_4ad2,
    0xefbe_4786_384f_25e3,
    0x0fc1_9dc6_8b8c_d5b5,
    0x240c_a1cc_77ac_9c65,
    0x2de9_2c6f_592b_0275,
    0x4a74_84aa_6ea6_e483,
    0x5cb0_a9dc_bd41_fbd4,
    0x76f9_88da_8311_53b5,
    0x983e_5152_ee66_dfab,
    0xa831_c66d_2db4_3210,
    0xb003_27c8_98fb_213f,
    0xbf59_7fc7_beef_0ee4,
    0xc6e0_0bf3_3da8_8fc2,
    0xd5a7_9147_930a_a725,
    0x06ca_6351_e003_826f,
    0x1429_2967_0a0e_6e70,
    0x27b7_0a85_46d2_2ffc,
    0x2e1b_2138_5c26_c926,
    0x4d2c_6dfc_5ac4_2aed,
    0x5338_0d13_9d95_b3df,
    0x650a_7354_8baf_63de,
    0x766a_0abb_3c77_b2a8,
    0x81c2_c92e_47ed_aee6,
    0x9272_2c85_1482_353b,
    0xa2bf_e8a1_4cf1_0364,
    0xa81a_664b_bc42_3001,
    0xc24b_8b70_d0f8_9791,
    0xc76c_51a3_0654_be30,
    0xd192_e819_d6ef_5218,
    0xd699_0624_5565_a910,
    0xf40e_3585_5771_202a,
    0x106a_a070_32bb_d1b8,
    0x19a4_c116_b8d2_d0c8,
    0x1e37_6c08_5141_ab53,
    0x2748_774c_df8e_eb99,
    0x34b0_bcb5_e19b_48a8,
    0x391c_0cb3_c5c9_5a63,
    0x4ed8_aa4a_e341_8acb,
    0x5b9c_ca4f_7763_e373,
    0x682e_6ff3_d6b2_b8a3,
    0x748f_82ee_5def_b2fc,
    0x78a5_636f_4317_2f60,
    0x84c8_7814_a1f0_ab72,
    0x8cc7_0208_1a64_39ec,
    0x90be_fffa_2363_1e28,
    0xa450_6ceb_de82_bde9,
    0xbef9_a3f7_b2c6_7915,
    0xc671_78f2_e372_532b,
    0xca27_3ece_ea26_619c,
    0xd186_b8c7_21c0_c207,
    0xeada_7dd6_cde0_eb1e,
    0xf57d_4f7f_ee6e_d178,
    0x06f0_67aa_7217_6fba,
    0x0a63_7dc5_a2c8_98a6,
    0x113f_9804_bef9_0dae,
    0x1b71_0b35_131c_471b,
    0x28db_77f5_2304_7d84,
    0x32ca_ab7b_40c7_2493,
    0x3c9e_be0a_15c9_bebc,
    0x431d_67c4_9c10_0d4c,
    0x4cc5_d4be_cb3e_42b6,
    0x597f_299c_fc65_7e2a,
    0x5fcb_6fab_3ad6_faec,
    0x6c44_198c_4a47_5817,
];

// Asks for this feature alone. The standard library asks for everything, and each
// question leaves a virtual machine, which takes microseconds.
cpufeatures::new!(avx512, "avx512f");

/// Fewest pages that are worth eight lanes, some of them idle.
const WORTHWHILE: usize = 4;

/// Appends the digests of the first pages, and gives back the others: fewer than
/// are worth it, or all where the processor has no AVX-512.
#[expect(
    unsafe_code,
    reason = "whether the processor can is known at run time only"
)]
pub(super) fn hash<'a, 'b>(
    pages: &'a [&'b Page],
    digests: &mut Vec<Sha384Digest>,
) -> &'a [&'b Page] {
    if !avx512::get() {
        return pages;
    }
    let (eights, rest) = pages.as_chunks::<LANES>();
    for eight in eights {
        // SAFETY: the processor has AVX-512F, as was just asked.
        digests.extend(unsafe { hash_eight(eight) });
    }
    if rest.len() < WORTHWHILE {
        return rest;
    }
    let mut eight = [rest[0]; LANES];
    eight[..rest.len()].copy_from_slice(rest);
    // SAFETY: as above.
    let hashed = unsafe { hash_eight(&eight) };
    digests.extend(hashed.iter().take(rest.len()));
    &[]
}

#[target_feature(enable = "avx512f")]
fn hash_eight(pages: &[&Page; LANES]) -> [Sha384Digest; LANES] {
    let mut state = INITIAL.map(|word| splat(word));
    for at in (0..PAGE_SIZE).step_by(BLOCK) {
        compress(&mut state, load(pages, at));
    }
    let mut padding = [_mm512_setzero_si512(); WORDS];
    padding[0] = _mm512_set1_epi64(i64::MIN);
    padding[WORDS - 1] = _mm512_set1_epi64(PAGE_BITS);
    compress(&mut state, padding);
    let state = state.map(|register| lanes(register));
    array::from_fn(|lane| {
        let mut digest = [0; 48];
        for (bytes, words) in digest.chunks_exact_mut(8).zip(&state) {
            bytes.copy_from_slice(&words[lane].to_be_bytes());
        }
        Sha384Digest::new(digest)
    })
}

/// The words of a block of each page.
#[target_feature(enable = "avx512f")]
fn load(pages: &[&Page; LANES], at: usize) -> [__m512i; WORDS] {
    let mut words = [_mm512_setzero_si512(); WORDS];
    for (index, word) in words.iter_mut().enumerate() {
        let start = at + 8 * index;
        let of = |lane: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&pages[lane][start..start + 8]);
            i64::from_be_bytes(bytes)
        };
        *word = _mm512_set_epi64(of(7), of(6), of(5), of(4), of(3), of(2), of(1), of(0));
    }
    words
}

#[expect(clippy::many_single_char_names, reason = "the specification's names")]
#[target_feature(enable = "avx512f")]
fn compress(state: &mut [__m512i; 8], mut words: [__m512i; WORDS]) {
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (round, constant) in ROUNDS.iter().enumerate() {
        let at = round % WORDS;
        if round >= WORDS {
            let early = words[(round + 1) % WORDS];
            let late = words[(round + 14) % WORDS];
            words[at] = sum4(
                words[at],
                xor(
                    _mm512_ror_epi64::<1>(early),
                    _mm512_ror_epi64::<8>(early),
                    _mm512_srli_epi64::<7>(early),
                ),
                words[(round + 9) % WORDS],
                xor(
                    _mm512_ror_epi64::<19>(late),
                    _mm512_ror_epi64::<61>(late),
                    _mm512_srli_epi64::<6>(late),
                ),
            );
        }
        let big = xor(
            _mm512_ror_epi64::<14>(e),
            _mm512_ror_epi64::<18>(e),
            _mm512_ror_epi64::<41>(e),
        );
        let choice = _mm512_ternarylogic_epi64::<0xca>(e, f, g);
        let keyed = _mm512_add_epi64(words[at], splat(*constant));
        let first = sum4(h, big, choice, keyed);
        let other = xor(
            _mm512_ror_epi64::<28>(a),
            _mm512_ror_epi64::<34>(a),
            _mm512_ror_epi64::<39>(a),
        );
        let majority = _mm512_ternarylogic_epi64::<0xe8>(a, b, c);
        h = g;
        g = f;
        f = e;
        e = _mm512_add_epi64(d, first);
        d = c;
        c = b;
        b = a;
        a = _mm512_add_epi64(first, _mm512_add_epi64(other, majority));
    }
    for (before, after) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *before = _mm512_add_epi64(*before, after);
    }
}

#[target_feature(enable = "avx512f")]
fn splat(word: u64) -> __m512i {
    _mm512_set1_epi64(word.cast_signed())
}

#[target_feature(enable = "avx512f")]
fn xor(x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    _mm512_ternarylogic_epi64::<0x96>(x, y, z)
}

#[target_feature(enable = "avx512f")]
fn sum4(w: __m512i, x: __m512i, y: __m512i, z: __m512i) -> __m512i {
    _mm512_add_epi64(_mm512_add_epi64(w, x), _mm512_add_epi64(y, z))
}

#[expect(unsafe_code, reason = "there is no other way out of a register")]
#[target_feature(enable = "avx512f")]
fn lanes(register: __m512i) -> [u64; LANES] {
    let mut lanes = [0; LANES];
    // SAFETY: the array has the register's 64 bytes, and this store needs no
    // alignment.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), register) };
    lanes
}
