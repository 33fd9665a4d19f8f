/**
 * The machine that QEMU makes for a guest: a q35 board with an Intel IOMMU, in software alone, and PCI devices of every kind
 * that the suites need.
 */
import { KiB, MiB } from '../../src/units.js';
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
  /** An e1000e network interface; what it sends goes nowhere, unless something else is plugged into {@link NET0_HUB}. */
  net0: '0000:00:04.0',
  /** An NVMe controller with a disk of 64 MiB, and with {@link DETACHED}. */
  disk0: '0000:00:05.0',
  /** A root port with an empty slot, for devices that come and go: they are at {@link HOTPLUG}. */
  port0: '0000:00:06.0',
  /** A bridge to conventional PCI: the two behind it share one group with it, as no IOMMU can tell them apart. */
  bridge0: '0000:00:07.0',
  edu2: '0000:02:01.0',
  edu3: '0000:02:02.0',
  /** Two more root ports with empty slots. */
  port1: '0000:00:08.0',
  port2: '0000:00:09.0',
} as const;
type DeviceName = keyof typeof DEVICES;

/** Where the guest sees what is put into the slot of {@link DEVICES.port0}. */
export const HOTPLUG = '0000:01:00.0';
/** And of the two others. */
export const HOTPLUG_1 = '0000:03:00.0';
export const HOTPLUG_2 = '0000:04:00.0';

/** The hub that the cable of {@link DEVICES.net0} ends in. */
export const NET0_HUB = 0;

/** The images that the namespaces of {@link DEVICES.disk0} are in, and their bytes. */
export const DISKS = { disk: 64 * MiB, zoned: 16 * MiB, protected: 8 * MiB, inline: 8 * MiB } as const;
export type DiskName = keyof typeof DISKS;

/** Namespaces of disk0 that are detached, so that nobody sees them: a test attaches them, and detaches them again. */
export const DETACHED = {
  /** 16 zones of 1 MiB, of which 768 KiB can be written; 3 may be open, and 5 active. */
  zoned: { id: 2, zoneBytes: MiB, zoneCapacity: 768 * KiB, maxOpen: 3, maxActive: 5 },
  /** Metadata of 8 bytes apart, which is protection information of type 1. */
  protected: { id: 3, metadata: 8 },
  /** Metadata of 16 bytes behind each block, without protection information. */
  inline: { id: 4, metadata: 16 },
} as const;

/** What a guest's machine is made of. Paths are of the host. */
export interface MachineParts {
  readonly iommu: IommuName;
  readonly image: string;
  readonly initramfs: string;
  /** The directory that is {@link SHARES.GUEST}. */
  readonly share: string;
  readonly disks: Readonly<Record<DiskName, string>>;
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
export function machineArguments({ iommu, image, initramfs, share, disks, monitor }: MachineParts): string[] {
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
    'nvme-subsys,id=subsystem0',
    `nvme,${at('disk0')},serial=anydma,subsys=subsystem0`,
    'nvme-ns,bus=disk0,nsid=1,drive=disk,shared=off',
    ...detachedNamespaces(),
    `pcie-root-port,${at('port0')},chassis=1,slot=1`,
    `pcie-pci-bridge,${at('bridge0')}`,
    `edu,${at('edu2')},bus=bridge0`,
    `edu,${at('edu3')},bus=bridge0`,
    `pcie-root-port,${at('port1')},chassis=2,slot=2`,
    `pcie-root-port,${at('port2')},chassis=3,slot=3`,
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
    ...['-netdev', `hubport,id=nowhere,hubid=${NET0_HUB}`],
    ...Object.entries(disks).flatMap(([id, file]) => ['-drive', `if=none,id=${id},format=raw,file=${file}`]),
    ...devices.flatMap((each) => ['-device', each]),
  ];
}

function detachedNamespaces(): string[] {
  const { zoned, protected: guarded, inline } = DETACHED;
  const common = (name: DiskName, id: number): string =>
    `nvme-ns,bus=disk0,nsid=${id},drive=${name},shared=off,detached=on`;
  return [
    `${common('zoned', zoned.id)},zoned=on,zoned.zone_size=${zoned.zoneBytes},zoned.zone_capacity=${zoned.zoneCapacity},` +
      `zoned.max_open=${zoned.maxOpen},zoned.max_active=${zoned.maxActive}`,
    `${common('protected', guarded.id)},ms=${guarded.metadata},mset=0,pi=1`,
    `${common('inline', inline.id)},ms=${inline.metadata},mset=1`,
  ];
}

function kernelArguments(iommu: IommuName): string {
  return [...KERNEL_ARGUMENTS, `intel_iommu=${iommu === 'none' ? 'off' : 'on'}`].join(' ');
}
