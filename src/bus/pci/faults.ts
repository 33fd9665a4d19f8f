/** Faults that IOMMUs report in the kernel log: the device and the address. */
import { isAddress, type Iova } from '../../units.js';
import type { DeviceFault } from '../model.js';
import { requesterId } from './address.js';

/**
 * The faults of one function in the kernel log. Supported are IOMMUs whose log lines contain function and address:
 * Intel's, AMD's, Arm's SMMU v3 (kernels that decode its events) and virtio's. The kernel limits the rate of these
 * lines, so some may be missing.
 */
export function faultsInLog(log: string, address: string): DeviceFault[] {
  return FORMATS.flatMap(({ pattern, read }) =>
    [...log.matchAll(pattern)].flatMap(({ index, groups = {} }) => {
      const fault = names(groups, address) ? read(groups) : undefined;
      return fault === undefined ? [] : [{ index, fault }];
    }),
  )
    .sort((a, b) => a.index - b.index)
    .map(({ fault }) => fault);
}

type Groups = Readonly<Record<string, string | undefined>>;

/** The format in which one kind of IOMMU logs a fault. */
interface Format {
  /** Groups: `function` or `endpoint` for the device, `iova`, `access` or `flags`. */
  readonly pattern: RegExp;
  readonly read: (groups: Groups) => DeviceFault | undefined;
}

const AMD_FLAG_WRITE = 0x20;

const FORMATS: readonly Format[] = [
  {
    // drivers/iommu/intel/dmar.c; older kernels write neither the PCI domain nor 0x.
    pattern:
      /DMAR: \[DMA (?<access>Read|Write)[^\]]*\] Request device \[(?<function>[\da-f:.]+)\] fault addr (?:0x)?(?<iova>[\da-f]+)/gi,
    read: ({ iova, access }) => fault(iova, access?.toLowerCase()),
  },
  {
    // drivers/iommu/amd/iommu.c: the function is before or inside the brackets.
    pattern:
      /(?:(?<function>[\da-f]{4,}:[\da-f]{2}:[\da-f]{2}\.\d): )?AMD-Vi: Event logged \[IO_PAGE_FAULT (?:device=(?<inside>[\da-f:.]+) )?(?:domain|pasid)=\S+ address=(?:0x)?(?<iova>[\da-f]+) flags=(?:0x)?(?<flags>[\da-f]+)/gi,
    read: ({ iova, flags }) => fault(iova, (parseInt(flags ?? '0', 16) & AMD_FLAG_WRITE) !== 0 ? 'write' : 'read'),
  },
  {
    // drivers/iommu/arm/arm-smmu-v3: two lines, and the second contains the access.
    pattern:
      /event: F_\w+ client: (?<function>[\da-f:.]+) sid: \S+ ssid: \S+ iova: 0x(?<iova>[\da-f]+)(?:[^\n]*\n[^\n]*(?:un)?priv (?:inst|data) (?<access>read|write))?/gi,
    read: ({ iova, access }) => fault(iova, access),
  },
  {
    // drivers/iommu/virtio-iommu.c: the endpoint of a PCI function is its requester ID, without the domain.
    pattern: /fault from EP (?<endpoint>\d+) at 0x(?<iova>[\da-f]+) \[(?<flags>[RWX]*)\]/g,
    read: ({ iova, flags = '' }) => fault(iova, flags.includes('W') ? 'write' : flags === '' ? undefined : 'read'),
  },
];

/** `undefined` for an address that is no IOVA (2^53 or above). */
function fault(iova: string | undefined, access: string | undefined): DeviceFault | undefined {
  const address = parseInt(iova ?? '', 16);
  if (!isAddress(address)) return undefined;
  return {
    iova: address as Iova,
    access: access === 'read' || access === 'write' ? access : undefined,
    source: 'kernel log',
  };
}

/** Whether a line is about this function. A line without a PCI domain matches any domain. */
function names({ function: before, inside, endpoint }: Groups, address: string): boolean {
  if (endpoint !== undefined)
    return Number(endpoint) === requesterId(address) + parseInt(address.split(':')[0], 16) * 2 ** 16;
  const name = (before ?? inside)?.toLowerCase();
  return name === address || (name !== undefined && address.endsWith(`:${name}`));
}

/** Length of the end of a log that serves as a mark, in bytes: long enough to occur only once. */
const MARK = 512;

/**
 * The lines written to the kernel log since the mark was made. The kernel drops old lines: if the mark itself was
 * dropped, new lines are recognised by their time.
 */
export class LogMark {
  readonly #end: string;

  /** @param log the content of the kernel log now */
  constructor(log: string | undefined) {
    this.#end = (log ?? '').slice(-MARK);
  }

  /** @param log the content of the kernel log later */
  newer(log: string): string {
    if (this.#end === '') return log;
    const at = log.lastIndexOf(this.#end);
    if (at >= 0) return log.slice(at + this.#end.length);
    const until = timeOf(
      this.#end
        .split('\n')
        .reverse()
        .find((line) => timeOf(line) >= 0) ?? '',
    );
    return log
      .split('\n')
      .filter((line) => timeOf(line) > until)
      .join('\n');
  }
}

/** `<6>[   12.345678] text`: seconds since the machine started; -1 if the kernel logs no times. */
function timeOf(line: string): number {
  return Number(/^(?:<\d+>)?\[ *(\d+\.\d+)/.exec(line)?.[1] ?? -1);
}
