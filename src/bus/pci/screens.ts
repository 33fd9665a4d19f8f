/**
 * Display and consoles of the machine: its primary display, the text console on a frame buffer, its serial consoles.
 */
import type { KernelPort } from '../../platform/ports.js';
import type { SysNode } from './disks.js';
import type { Asking, Use } from './found.js';
import { virtioBelow } from './virtio.js';

const FORCE = 'make sure that the machine can be reached without it, then use --force';

/** Which of these a function provides. @param nodes the devices that its driver created */
export function screenUses(kernel: KernelPort, asking: Asking, address: string, nodes: readonly SysNode[]): Use[] {
  const read = (path: string): string => asking.ask(() => kernel.readText(path), undefined)?.trim() ?? '';
  const uses: Use[] = [];
  if (read(`/sys/bus/pci/devices/${address}/boot_vga`) === '1')
    uses.push({ text: "it is the machine's primary display", todo: FORCE });
  const frame = nodes.find(({ path }) => /\/graphics\/fb\d+$/.test(path));
  if (frame !== undefined)
    for (const name of asking.ask(() => kernel.list('/sys/class/vtconsole'), [])) {
      const directory = `/sys/class/vtconsole/${name}`;
      if (/frame buffer/.test(read(`${directory}/name`)) && read(`${directory}/bind`) === '1')
        uses.push({
          text: `the text console is on its frame buffer ${frame.name}`,
          todo: `echo 0 > ${directory}/bind`,
        });
    }
  for (const name of read('/sys/class/tty/console/active').split(/\s+/)) {
    const isIts =
      nodes.some((node) => node.path.endsWith(`/tty/${name}`)) || isVirtioConsole(kernel, asking, address, name);
    if (name !== '' && isIts) uses.push({ text: `the machine's console is its ${name}`, todo: FORCE });
  }
  return uses;
}

/** The number of virtio consoles (VIRTIO_ID_CONSOLE of include/uapi/linux/virtio_ids.h). */
const VIRTIO_CONSOLE = 3;

/** Any virtio console may be `hvc0`: the kernel does not say which one is. */
function isVirtioConsole(kernel: KernelPort, asking: Asking, address: string, name: string): boolean {
  return (
    /^hvc\d+$/.test(name) &&
    virtioBelow(kernel, asking, address).some(
      (directory) => Number(asking.ask(() => kernel.readText(`${directory}/device`), undefined)) === VIRTIO_CONSOLE,
    )
  );
}
