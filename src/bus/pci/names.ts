/** Names for people: of vendors and devices from the system's pci.ids, of classes from the tables below. */
import { NO_PERMISSION, unlessFails } from '../../errors.js';
import type { KernelPort } from '../../platform/ports.js';
import type { IdMatch } from '../model.js';

/** Where systems keep pci.ids (https://pci-ids.ucw.cz); the first file that exists is used. */
const PLACES = [
  '/usr/share/misc/pci.ids',
  '/usr/share/hwdata/pci.ids',
  '/usr/share/pci.ids',
  '/var/lib/pciutils/pci.ids',
];

/** Base classes and common sub-classes (PCI Code and ID Assignment Specification 1.11). */
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

/** The kind of device of a class code (24 bits), by its base class: `network`, `storage` ... */
export function classKind(classCode: number): string {
  const base = (classCode >>> 16).toString(16).padStart(2, '0');
  return CLASSES[base] ?? `class ${base}`;
}

/** The most exact name of a class code: `Ethernet`, `NVMe`. */
export function className(classCode: number): string {
  return CLASSES[(classCode >>> 8).toString(16).padStart(4, '0')] ?? classKind(classCode);
}

/** Names from the system's pci.ids, which is read on first use. */
export class PciNames {
  readonly #kernel: KernelPort;
  #text: string | undefined;

  constructor(kernel: KernelPort) {
    this.#kernel = kernel;
  }

  /** The names of vendor and device; `undefined` for a name that the list does not contain. */
  of({ vendor, device }: IdMatch): { readonly vendor: string | undefined; readonly device: string | undefined } {
    // The port returns bytes, one per character, but pci.ids is UTF-8.
    const text = (this.#text ??= this.#read());
    const at = text.indexOf(`\n${id(vendor)}  `);
    if (at < 0) return { vendor: undefined, device: undefined };
    // A vendor's devices are the following lines that begin with a tab.
    const block = /^\n[^\n]*(?:\n(?:[\t#][^\n]*)?)*/.exec(text.slice(at, at + LONGEST_BLOCK))?.[0] ?? '';
    const name = (start: string, width: number): string | undefined => {
      const found = block.indexOf(start);
      if (found < 0) return undefined;
      const end = block.indexOf('\n', found + 1);
      return decode(block.slice(found + width, end < 0 ? undefined : end).trim());
    };
    return { vendor: name(`\n${id(vendor)}  `, 7), device: name(`\n\t${id(device)}  `, 8) };
  }

  /** The first list that this user may read, with a line feed in front; empty if there is none. */
  #read(): string {
    for (const path of PLACES) {
      const text = unlessFails(NO_PERMISSION, () => this.#kernel.readText(path));
      if (text !== undefined) return `\n${text}`;
    }
    return '\n';
  }

  /** Vendor and device in one text: names, or ids where there is no name. */
  describe(ids: IdMatch): string {
    const { vendor, device } = this.of(ids);
    if (vendor === undefined) return `${id(ids.vendor)}:${id(ids.device)}`;
    return `${vendor} ${device ?? `device ${id(ids.device)}`}`;
  }
}

/** Limit for the entries of one vendor, in bytes: the largest vendor has about 300 KiB. */
const LONGEST_BLOCK = 2 ** 20;

/** Four hexadecimal digits. */
function id(number: number | undefined): string {
  return (number ?? 0xffff).toString(16).padStart(4, '0');
}

function decode(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString('utf8');
}
