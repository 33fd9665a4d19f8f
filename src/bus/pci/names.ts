/** Names for people: of vendors and devices by the system's pci.ids, of classes by what is built in. */
import { NO_PERMISSION, unlessFails } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import type { IdMatch } from '../model.js';

/** Where systems keep pci.ids (https://pci-ids.ucw.cz); the first that is there is read. */
const PLACES = [
  '/usr/share/misc/pci.ids',
  '/usr/share/hwdata/pci.ids',
  '/usr/share/pci.ids',
  '/var/lib/pciutils/pci.ids',
];

/** Base classes, and of their sub-classes those that are met (PCI Code and ID Assignment Specification 1.11). */
const CLASSES: Readonly<Record<string, string>> = {
  '00': 'old device',
  '01': 'storage',
  '0100': 'SCSI',
  '0101': 'IDE',
  '0104': 'RAID',
  '0106': 'SATA',
  '0107': 'SAS',
  '0108': 'NVMe',
  '02': 'network',
  '0200': 'Ethernet',
  '0207': 'InfiniBand',
  '03': 'display',
  '0300': 'VGA',
  '0302': '3D',
  '04': 'multimedia',
  '0403': 'audio',
  '05': 'memory',
  '0502': 'CXL memory',
  '06': 'bridge',
  '0600': 'host bridge',
  '0601': 'ISA bridge',
  '0604': 'PCI bridge',
  '07': 'communication',
  '0700': 'serial port',
  '08': 'system',
  '0806': 'IOMMU',
  '0880': 'other system device',
  '09': 'input',
  '0a': 'docking station',
  '0b': 'processor',
  '0c': 'serial bus',
  '0c03': 'USB',
  '0c05': 'SMBus',
  '0d': 'wireless',
  '0e': 'intelligent controller',
  '0f': 'satellite communication',
  '10': 'encryption',
  '11': 'signal processing',
  '12': 'accelerator',
  '13': 'instrumentation',
  '40': 'coprocessor',
  ff: 'unclassified',
};

/** Which kind of device a class code (24 bits) says: `network`, `storage` ... by its base class. */
export function classKind(classCode: number): string {
  const base = (classCode >>> 16).toString(16).padStart(2, '0');
  return CLASSES[base] ?? `class ${base}`;
}

/** The same, as exactly as is known: `Ethernet`, `NVMe`. */
export function className(classCode: number): string {
  return CLASSES[(classCode >>> 8).toString(16).padStart(4, '0')] ?? classKind(classCode);
}

/** Names out of the system's pci.ids, which is read when the first name is asked for. */
export class PciNames {
  readonly #kernel: KernelPort;
  #text: string | undefined;

  constructor(kernel: KernelPort) {
    this.#kernel = kernel;
  }

  /** Vendor and device; `undefined` where the system does not know it. */
  of({ vendor, device }: IdMatch): { readonly vendor: string | undefined; readonly device: string | undefined } {
    // The list was made with UTF-8; the kernel's files are not, so the port gives bytes.
    const text = (this.#text ??= this.#read());
    const at = text.indexOf(`\n${id(vendor)}  `);
    if (at < 0) return { vendor: undefined, device: undefined };
    // A vendor's devices are the lines after it that begin with a tab.
    const block = /^\n[^\n]*(?:\n(?:[\t#][^\n]*)?)*/.exec(text.slice(at, at + LONGEST_BLOCK))?.[0] ?? '';
    const name = (start: string, width: number): string | undefined => {
      const found = block.indexOf(start);
      if (found < 0) return undefined;
      const end = block.indexOf('\n', found + 1);
      return decode(block.slice(found + width, end < 0 ? undefined : end).trim());
    };
    return { vendor: name(`\n${id(vendor)}  `, 7), device: name(`\n\t${id(device)}  `, 8) };
  }

  /** The first list that this user may read, after a line feed. Without one there are numbers. */
  #read(): string {
    for (const path of PLACES) {
      const text = unlessFails(NO_PERMISSION, () => this.#kernel.readText(path));
      if (text !== undefined) return `\n${text}`;
    }
    return '\n';
  }

  /** Vendor and device as one text: names where there are any, else ids. */
  describe(ids: IdMatch): string {
    const { vendor, device } = this.of(ids);
    if (vendor === undefined) return `${id(ids.vendor)}:${id(ids.device)}`;
    return `${vendor} ${device ?? `device ${id(ids.device)}`}`;
  }
}

/** The vendor with the most devices has some 300 KiB. bytes */
const LONGEST_BLOCK = 2 ** 20;

/** Four hexadecimal digits. */
function id(number: number | undefined): string {
  return (number ?? 0xffff).toString(16).padStart(4, '0');
}

function decode(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString('utf8');
}
