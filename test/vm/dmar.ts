/**
 * A table of ACPI for a guest whose firmware keeps memory of a device mapped: what QEMU's own DMAR table says, and a reserved
 * region (RMRR), which QEMU can not make. The kernel takes it from its initrd in place of the other, because it is of the same
 * maker and a newer revision (Documentation/admin-guide/acpi/initrd_table_override.rst; Intel VT-d specification, section 8).
 */

/** What the firmware keeps: a part of what this machine's memory map calls reserved. */
export const RESERVED = { start: 0xfffc_0000, end: 0xfffc_0fff } as const;

/** Where it has to be in the initrd's first, uncompressed archive. */
export const DMAR_PATH = 'kernel/firmware/acpi/dmar.aml';

/** Bytes of the header that all tables have. */
const HEADER = 36;
const CHECKSUM = 9;
/** Where QEMU has the registers of its IOMMU. */
const REGISTERS = 0xfed9_0000;
const DRHD = 0;
const RMRR = 1;
const SCOPE_ENDPOINT = 1;
const SCOPE_IOAPIC = 3;

/** The table. @param device the PCI function on bus 0 that the region is for: `0000:00:03.0` */
export function dmarTable(device: string): Uint8Array {
  const width = 48;
  const [slot, func] = (device.split(':')[2] ?? '').split('.').map((text) => parseInt(text, 16));
  const body = Buffer.concat([
    // Address width, interrupts can be remapped, nothing.
    Buffer.from([width - 1, 1, ...new Array<number>(10).fill(0)]),
    // One unit for all devices of segment 0; the interrupt controller that it has is where QEMU says.
    structure(DRHD, Buffer.concat([Buffer.from([1, 0, 0, 0]), u64(REGISTERS), scope(SCOPE_IOAPIC, 0, 0xff, [0, 0])])),
    structure(
      RMRR,
      Buffer.concat([
        Buffer.from([0, 0, 0, 0]),
        u64(RESERVED.start),
        u64(RESERVED.end),
        scope(SCOPE_ENDPOINT, 0, 0, [slot, func]),
      ]),
    ),
  ]);
  const header = Buffer.alloc(HEADER);
  header.write('DMAR', 0, 'latin1');
  header.writeUInt32LE(HEADER + body.length, 4);
  header.writeUInt8(1, 8);
  header.write('BOCHS BXPC    ', 10, 'latin1');
  // QEMU's own has 1.
  header.writeUInt32LE(2, 24);
  header.write('BXPC', 28, 'latin1');
  header.writeUInt32LE(1, 32);
  const table = Buffer.concat([header, body]);
  // All bytes together are 0.
  table.writeUInt8(-table.reduce((sum, byte) => sum + byte, 0) & 0xff, CHECKSUM);
  return table;
}

function structure(type: number, content: Buffer): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt16LE(type, 0);
  head.writeUInt16LE(4 + content.length, 2);
  return Buffer.concat([head, content]);
}

function scope(type: number, id: number, bus: number, path: readonly number[]): Buffer {
  return Buffer.from([type, 6 + path.length, 0, 0, id, bus, ...path]);
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}
