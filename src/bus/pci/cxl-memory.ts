/** Memory of a CXL device that the kernel has in a region: as ordinary memory, or as persistent memory. Taking it ends the machine. */
import type { KernelPort } from '../../platform/ports.js';
import type { Asking, Use } from './found.js';

const DEVICES = '/sys/bus/cxl/devices';

/** The regions that have memory of a function (Documentation/ABI/testing/sysfs-bus-cxl). */
export function cxlUses(kernel: KernelPort, asking: Asking, address: string): Use[] {
  const linkOf = (path: string): string => asking.ask(() => kernel.readLink(`${DEVICES}/${path}`), undefined) ?? '';
  const names = asking.ask(() => kernel.list(DEVICES), []);
  const memories = names.filter((name) => /^mem\d+$/.test(name) && linkOf(name).includes(`/${address}/`));
  if (memories.length === 0) return [];
  const endpoints = names.filter(
    (name) => name.startsWith('endpoint') && memories.includes(linkOf(`${name}/uport`).split('/').at(-1) ?? ''),
  );
  const prefixes = endpoints.map((name) => `decoder${name.slice('endpoint'.length)}.`);
  const decoders = names.filter((name) => prefixes.some((prefix) => name.startsWith(prefix)));
  const regions = decoders.map((name) =>
    asking.ask(() => kernel.readText(`${DEVICES}/${name}/region`), undefined)?.trim(),
  );
  return [...new Set(regions)].flatMap((region) =>
    region === undefined || region === ''
      ? []
      : [
          {
            text: `its memory is a part of ${region}`,
            todo: `cxl disable-region ${region}; cxl destroy-region ${region}`,
          },
        ],
  );
}
