/**
 * The machine that QEMU makes for a guest: a q35 board with an Intel IOMMU, in software alone, and PCI devices of every kind
 * that the suites need.
 */
import { SHARES } from './initramfs.js';

/**
 * Address bits of the IOMMU: 39 is what many desktop machines have. `unsafe`: it has 48, and does not remap interrupts, so
 * that a device can raise any. `firmware`: it has 48, and the firmware keeps memory of a device mapped (dmar.ts). `none`: there
 * is no IOMMU.
 */
export const IOMMUS = ['48', '39', 'unsafe', 'firmware', 'none'] as const;
export type IommuName = (typeof IOMMUS)[number];

/** What QEMU's IOMMU is to be like. Without caching mode a guest's VFIO does not work with it. */
const IOMMU_DEVICE: Readonly<Record<IommuName, string | undefined>> = {
  48: 'intel-iommu,intremap=on,caching-mode=on,aw-bits=48',
  39: 'intel-iommu,intremap=on,caching-mode=on,aw-bits=39',
  unsafe: 'intel-iommu,intremap=off,caching-mode=on,aw-bits=48',
  firmware: 'intel-iommu,intremap=on,caching-mode=on,aw-bits=48',
  none: undefined,
};

/** Memory of a guest, in MiB. */
export const GUEST_MEMORY_MIB = 3072;

/** Huge pages of 2 MiB that a guest has from the start. */
export const GUEST_HUGEPAGES = 256;

/** The devices, by QEMU's names, and where the guest sees them. */
export const DEVICES = {
  /** Two of QEMU's edu devices, each in an IOMMU group of its own. They reach 28 bits of addresses. */
  edu0: '0000:00:02.0',
  edu1: '0000:00:03.0',
  /** An e1000e network interface; what it sends goes nowhere. */
  net0: '0000:00:04.0',
  /** An NVMe disk of 64 MiB. */
  disk0: '0000:00:05.0',
  /** A root port with an empty slot, for devices that come and go: they are at {@link HOTPLUG}. */
  port0: '0000:00:06.0',
  /** A bridge to conventional PCI: the two behind it share one group with it, as no IOMMU can tell them apart. */
  bridge0: '0000:00:07.0',
  edu2: '0000:02:01.0',
  edu3: '0000:02:02.0',
} as const;
type DeviceName = keyof typeof DEVICES;

/** Where the guest sees what is put into the slot of {@link DEVICES.port0}. */
export const HOTPLUG = '0000:01:00.0';

/** What a guest's machine is made of. Paths are of the host. */
export interface MachineParts {
  readonly iommu: IommuName;
  readonly image: string;
  readonly initramfs: string;
  /** The directory that is {@link SHARES.GUEST}. */
  readonly share: string;
  /** The disk's content. */
  readonly disk: string;
  /** The socket for QEMU's monitor protocol. */
  readonly monitor: string;
}

const KERNEL_ARGUMENTS = [
  'console=ttyS0',
  // Errors that the suites provoke are not for the console; crashes of the kernel are.
  'loglevel=2',
  'panic=-1',
  'iommu=nopt',
  // What takes time at boot, or at every system call.
  'mitigations=off',
  'random.trust_cpu=on',
  'cryptomgr.notests=1',
  'audit=0',
  // On a busy host the timer's interrupt may come too late for the kernel's check of it, which would be the end.
  'no_timer_check',
  'apparmor=0',
  'nowatchdog',
];

/** The arguments of qemu-system-x86_64. The guest's console is its standard output. */
export function machineArguments({ iommu, image, initramfs, share, disk, monitor }: MachineParts): string[] {
  const at = (name: DeviceName): string => {
    const [slot] = DEVICES[name].split(':').slice(-1);
    return `id=${name},addr=${slot ?? ''}`;
  };
  const devices = [
    // Before the devices that it is for.
    ...(IOMMU_DEVICE[iommu] === undefined ? [] : [IOMMU_DEVICE[iommu]]),
    `edu,${at('edu0')}`,
    `edu,${at('edu1')}`,
    `e1000e,${at('net0')},netdev=nowhere,romfile=`,
    `nvme,${at('disk0')},drive=disk,serial=anydma`,
    `pcie-root-port,${at('port0')},chassis=1,slot=1`,
    `pcie-pci-bridge,${at('bridge0')}`,
    `edu,${at('edu2')},bus=bridge0`,
    `edu,${at('edu3')},bus=bridge0`,
    `virtio-9p-pci,fsdev=host,mount_tag=${SHARES.HOST}`,
    `virtio-9p-pci,fsdev=guest,mount_tag=${SHARES.GUEST}`,
  ];
  return [
    ...['-machine', 'q35', '-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', `${GUEST_MEMORY_MIB}M`],
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio'],
    ...['-qmp', `unix:${monitor},server=on,wait=off`],
    ...['-kernel', image, '-initrd', initramfs, '-append', kernelArguments(iommu)],
    ...['-fsdev', 'local,id=host,path=/,security_model=none,readonly=on,multidevs=remap'],
    ...['-fsdev', `local,id=guest,path=${share},security_model=none`],
    ...['-netdev', 'hubport,id=nowhere,hubid=0'],
    ...['-drive', `if=none,id=disk,format=raw,file=${disk}`],
    ...devices.flatMap((each) => ['-device', each]),
  ];
}

function kernelArguments(iommu: IommuName): string {
  return [...KERNEL_ARGUMENTS, `intel_iommu=${iommu === 'none' ? 'off' : 'on'}`].join(' ');
}
