/** The list of RDMA devices on Linux. */
import { realpathSync } from 'node:fs';
import { DmaError, ERRNO } from '../../errors.js';
import { fail, needDescriptors } from '../linux/libc.js';
import type { Libc } from '../linux/libc.js';
import type { Libibverbs } from './libibverbs.js';
import { readKernelText } from '../linux/proc.js';
import { ifPresent } from '../linux/node-errors.js';
import { DEVICE } from './abi/devices.js';
import { nodeType, readText, transportType } from './verbs-attributes.js';
import { peekPointer } from './verbs-handles.js';
import type { VerbsDevice } from './verbs-types.js';

const SYSFS = '/sys/class/infiniband';

/**
 * The most files that libibverbs opens at once to build its list: two directories, a file, a socket; with some spare.
 */
const MOST_OPEN = 6;

/** Calls `visit` with each device and the address of its struct, which is valid only until `visit` returns. */
export function eachVerbsDevice(
  libc: Libc,
  library: Libibverbs,
  visit: (device: VerbsDevice, address: number) => void,
): void {
  // libibverbs silently skips devices that it can not open.
  needDescriptors('ibv_get_device_list', MOST_OPEN);
  const list = library.getDeviceList(0);
  if (list === 0) {
    const errno = libc.errno();
    // The kernel does not support RDMA.
    if (errno === ERRNO.ENOSYS || errno === ERRNO.ENOENT) return;
    fail(errno, 'ibv_get_device_list');
  }
  try {
    for (let at = list; ; at += 8) {
      const address = peekPointer(libc, at);
      if (address === 0) return;
      visit(describe(new DataView(libc.view(address, DEVICE.size))), address);
    }
  } finally {
    library.freeDeviceList(list);
  }
}

function describe(struct: DataView): VerbsDevice {
  const path = readText(struct, DEVICE.ibdev_path, 256);
  return {
    name: readText(struct, DEVICE.name, 64),
    guid: readKernelText(`${path}/node_guid`)?.trim() ?? '',
    node: nodeType(struct.getInt32(DEVICE.node_type, true)),
    transport: transportType(struct.getInt32(DEVICE.transport_type, true)),
    path,
    devicePath: `/dev/infiniband/${readText(struct, DEVICE.dev_name, 64)}`,
    parent: realPath(`${path}/device`),
  };
}

/** The error for a device name that is not in the list. */
export function noVerbsDevice(name: string): DmaError {
  const isInKernel = /^\w[\w.-]*$/.test(name) && realPath(`${SYSFS}/${name}`) !== undefined;
  return new DmaError({
    code: 'ENODEV',
    operation: 'ibv_open_device',
    reason: isInKernel
      ? `the kernel has ${name}, but libibverbs has no provider for it`
      : `there is no RDMA device ${name}`,
    hint: isInKernel ? 'install ibverbs-providers' : undefined,
  });
}

function realPath(path: string): string | undefined {
  return ifPresent(path, () => realpathSync(path));
}
