"""What several machines say of themselves, shortened to what is read and some of what is not."""

M1 = """\
hw.ncpu: 8
hw.byteorder: 1234
hw.memsize: 17179869184
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 4
hw.perflevel0.physicalcpu_max: 4
hw.perflevel0.logicalcpu: 4
hw.perflevel0.l1icachesize: 196608
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 4
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 4
hw.perflevel1.logicalcpu: 4
hw.perflevel1.l1icachesize: 131072
hw.perflevel1.l1dcachesize: 65536
hw.perflevel1.l2cachesize: 4194304
hw.perflevel1.cpusperl2: 4
hw.perflevel1.name: Efficiency
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
hw.optional.neon: 1
hw.optional.arm64: 1
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M1
kern.hv_vmm_present: 0
"""
M1_VIRTUAL = (
    M1.replace("Apple M1", "Apple M1 (Virtual)")
    .replace("kern.hv_vmm_present: 0", "kern.hv_vmm_present: 1")
    .replace("hw.nperflevels: 2", "hw.nperflevels: 1")
)
M3 = (
    M1.replace("Apple M1", "Apple M3")
    .replace("FEAT_BF16: 0", "FEAT_BF16: 1")
    .replace("FEAT_I8MM: 0", "FEAT_I8MM: 1\nhw.optional.arm.FEAT_SME: 0\nhw.optional.arm.FEAT_SME2: 0")
    .replace("hw.perflevel0.l2cachesize: 12582912", "hw.perflevel0.l2cachesize: 16777216")
)
M4 = M3.replace("Apple M3", "Apple M4").replace("FEAT_SME: 0", "FEAT_SME: 1").replace("FEAT_SME2: 0", "FEAT_SME2: 1")
INTEL_MAC = """\
hw.memsize: 17179869184
hw.physicalcpu: 4
hw.logicalcpu: 8
hw.l1icachesize: 32768
hw.l1dcachesize: 49152
hw.l2cachesize: 524288
hw.l3cachesize: 8388608
machdep.cpu.features: FPU VME SSE4.2 AVX1.0 FMA
machdep.cpu.leaf7_features: AVX2 AVX512F AVX512DQ AVX512VNNI
machdep.cpu.brand_string: Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz
kern.hv_vmm_present: 0
"""


def x86(name: str, flags: str, count: int) -> str:
    """Return /proc/cpuinfo of ``count`` equal processors."""
    entry = (
        f"vendor_id\t: GenuineIntel\nmodel name\t: {name}\ncpu MHz\t\t: 2500.000\nflags\t\t: {flags}\nbugs\t\t: l1tf\n"
    )
    return "\n".join(f"processor\t: {number}\n{entry}" for number in range(count)) + "\n"


def arm(parts: list[str], flags: str) -> str:
    """Return /proc/cpuinfo of processors with these part numbers."""
    entry = "BogoMIPS\t: 2100.00\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n"
    return "\n".join(f"processor\t: {number}\n{entry.format(flags, part)}" for number, part in enumerate(parts)) + "\n"


_SKYLAKE_FLAGS = (
    "fpu vme sse sse2 ht fma sse4_2 avx f16c hypervisor avx2 bmi2 avx512f avx512dq avx512cd avx512bw avx512vl"
)
SKYLAKE = x86("Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz", _SKYLAKE_FLAGS, 4)
HASWELL = x86("Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz", "fpu sse sse2 fma avx f16c avx2 bmi2", 8)
ZEN_4 = x86(
    "AMD EPYC 9R14",
    "fpu sse sse4_2 fma avx avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16 gfni avx512_vnni hypervisor",
    2,
)
ALDER_LAKE = x86("12th Gen Intel(R) Core(TM) i5-12600K", "fpu sse sse4_2 fma avx avx2 avx_vnni gfni", 16)
GRAVITON_2 = arm(
    ["0xd0c"] * 2, "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
)
GRAVITON_3 = arm(
    ["0xd40"] * 4,
    "fp asimd aes atomics fphp asimdhp cpuid asimdrdm asimddp sha512 sve asimdfhm svei8mm svebf16 i8mm bf16 dgh rng",
)
RK3588 = arm(
    ["0xd05"] * 4 + ["0xd0b"] * 4, "fp asimd aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
)
