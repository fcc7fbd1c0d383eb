"""Debian unstable with VirtualBox: a machine in which virtual machines of VirtualBox run.

It has VirtualBox's programs, Python binding and web service, and its kernel modules, loaded. To start
machines it needs a virtual CPU with AMD's SVM or Intel's VT-x: emulation has the former, under QEMU 11 or
later and a CPU model such as EPYC-v4. What the modules were compiled with is not kept, nor what draws in
three dimensions: the image is less than half as large without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vmfest.images.recipes.debian import Debian
from pytest_vmfest.images.recipes.initrd import COMMAND_LINE

if TYPE_CHECKING:
    from pytest_vmfest.images.recipes.apt import Mirrors


def _sources(mirrors: Mirrors) -> list[str]:
    return [f"deb {mirrors.archive} sid main contrib"]


# The order in which the packages are configured decides whether they have compiled the modules for the
# installed kernel. If they have, this only looks.
_MODULES = """\
kernel=$(basename "$1"/usr/lib/modules/*) && chroot "$1" dkms autoinstall --kernelver "$kernel" &&
for name in vboxdrv vboxnetadp vboxnetflt; do
  chroot "$1" modinfo -k "$kernel" "$name" >/dev/null || exit 1
done
"""

_WITHOUT_COMPILER = """\
rm -rf "$1"/usr/src/* "$1"/usr/lib/linux-kbuild-* "$1"/var/lib/dkms \
  "$1"/usr/lib/gcc "$1"/usr/libexec/gcc "$1"/usr/bin/x86_64-linux-gnu-*
"""

# Parts of the compiler that a kernel does not need, drawing, names of hardware, a test of the web service.
_NOT_UNPACKED = (
    "/usr/bin/*gprofng*", "/usr/bin/*lto-dump*", "/usr/lib/*/libasan.*", "/usr/lib/*/libhwasan.*",
    "/usr/lib/*/liblsan.*", "/usr/lib/*/libtsan.*", "/usr/lib/*/libubsan.*", "/usr/lib/gcc/*.a",
    "/usr/libexec/gcc/*/lto1",
    "/usr/lib/*/dri/*", "/usr/lib/*/libLLVM*", "/usr/lib/*/libgallium*", "/usr/lib/*/libz3.*",
    "/usr/lib/udev/hwdb.d/*",
    "/usr/lib/virtualbox/webtest",
)  # fmt: skip

RECIPE = Debian(
    name="virtualbox-host",
    description="Debian unstable with VirtualBox, to run VirtualBox's machines in",
    suite="sid",
    sources=_sources,
    packages=(
        "linux-headers-cloud-amd64", "linux-image-cloud-amd64", "openssh-client", "python3", "qemu-utils",
        "virtualbox", "virtualbox-dkms",
    ),
    # None, so that whoever asks for the newest Debian does not get this one.
    os_version=None,
    os_type="Debian_64",
    hardware="medium",
    disk_mib=16384,
    # Mirrors may be frozen at a day that is long past.
    apt_options=('Acquire::Check-Valid-Until "false"',),
    not_unpacked=_NOT_UNPACKED,
    hooks=(_MODULES, _WITHOUT_COMPILER),
    # The modules are loaded before, by etc/modules-load.d; this kernel has no driver for the screen; and
    # memory is too dear to keep /tmp in it.
    masked=(
        "dev-hugepages.mount", "dev-mqueue.mount", "screen.service", "tmp.mount", "virtualbox.service",
    ),
    absent_modules=frozenset({"e1000"}),
    # An emulated clock is never found steady by measuring it.
    command_line=f"{COMMAND_LINE} clocksource=tsc nowatchdog",
)  # fmt: skip
build = RECIPE.build
check = RECIPE.check
