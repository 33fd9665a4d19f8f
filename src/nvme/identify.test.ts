import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  CONTROLLER,
  controllerIdentityOf,
  DESCRIPTOR_TYPE,
  descriptorsOf,
  IDENTIFY_BYTES,
  NAMESPACE,
  namespaceIdentityOf,
  namespaceListOf,
  paddedText,
  putPadded,
} from './identify.js';
import { ERROR_ENTRY, errorEntriesOf, FIRMWARE_LOG, firmwareOf, healthOf, SMART } from './log-pages.js';

function page(length = IDENTIFY_BYTES): { readonly bytes: Uint8Array; readonly view: DataView } {
  // Not at the beginning of its buffer, as in memory that is mapped.
  const bytes = new Uint8Array(new ArrayBuffer(length + 8), 8, length);
  return { bytes, view: new DataView(bytes.buffer, 8, length) };
}

describe('NVMe identify', () => {
  it('texts are padded with blanks, and read without them', () => {
    const { bytes } = page();
    putPadded(bytes, 4, 20, 'S1');
    assert.deepEqual([...bytes.subarray(4, 8)], [0x53, 0x31, 0x20, 0x20]);
    assert.equal(bytes[23], 0x20);
    assert.equal(bytes[24], 0);
    assert.equal(paddedText(bytes, 4, 20), 'S1');
    bytes.set([0x20, 0x41, 0x07, 0x42, 0, 0x43], 64);
    assert.equal(paddedText(bytes, 64, 8), 'A?B');
  });

  it('0-based fields of the controller are told as counts', () => {
    const { bytes, view } = page();
    putPadded(bytes, CONTROLLER.MN, 40, 'A disk');
    view.setUint16(CONTROLLER.VID, 0x1b36, true);
    view.setUint32(CONTROLLER.VER, 0x00010400, true);
    view.setUint32(CONTROLLER.NN, 256, true);
    view.setUint32(CONTROLLER.HMPRE, 16, true);
    view.setUint32(CONTROLLER.RTD3E, 8_000_000, true);
    view.setUint32(CONTROLLER.TNVMCAP + 4, 2, true);
    bytes[CONTROLLER.MDTS] = 7;
    bytes[CONTROLLER.ACL] = 3;
    bytes[CONTROLLER.SQES] = 0x66;
    bytes[CONTROLLER.CQES] = 0x64;
    bytes[CONTROLLER.VWC] = 0x7;
    const of = controllerIdentityOf(bytes);
    assert.equal(of.model, 'A disk');
    assert.equal(of.serial, '');
    assert.equal(of.vendor, 0x1b36);
    assert.equal(of.mdts, 7);
    assert.deepEqual([of.abortLimit, of.eventLimit, of.errorLogEntries], [4, 1, 1]);
    assert.deepEqual(
      [of.submissionEntry, of.completionEntry],
      [
        [6, 6],
        [4, 6],
      ],
    );
    assert.equal(of.writeCache, true);
    assert.equal(of.namespaces, 256);
    assert.equal(of.hostMemoryPreferred, 65536);
    assert.equal(of.shutdownMs, 8000);
    assert.equal(of.capacity, 2 ** 33);
  });

  it('formats of a namespace are powers of two, and the one in use is told', () => {
    const { bytes, view } = page();
    view.setUint32(NAMESPACE.NSZE, 1000, true);
    view.setUint32(NAMESPACE.NSZE + 4, 1, true);
    bytes[NAMESPACE.NLBAF] = 2;
    bytes[NAMESPACE.FLBAS] = 0x11;
    bytes[NAMESPACE.DPS] = 0x9;
    bytes[NAMESPACE.DLFEAT] = 0x9;
    view.setUint32(NAMESPACE.LBAF, 9 << 16, true);
    view.setUint32(NAMESPACE.LBAF + 4, (12 << 16) | 8 | (2 << 24), true);
    const of = namespaceIdentityOf(bytes);
    assert.equal(of.blocks, 2 ** 32 + 1000);
    assert.deepEqual(of.formats, [
      { blockSize: 512, metadataSize: 0, performance: 0 },
      { blockSize: 4096, metadataSize: 8, performance: 2 },
      { blockSize: 0, metadataSize: 0, performance: 0 },
    ]);
    assert.deepEqual([of.blockSize, of.metadataSize, of.metadataInline], [4096, 8, true]);
    assert.deepEqual([of.protection, of.protectionFirst, of.deallocatedZeroes], [1, true, true]);
    assert.deepEqual([of.nguid, of.eui64], ['', '']);
  });

  it('a format in use that is not in the list has no block size', () => {
    const { bytes, view } = page();
    view.setUint32(NAMESPACE.LBAF, 9 << 16, true);
    bytes[NAMESPACE.FLBAS] = 5;
    assert.equal(namespaceIdentityOf(bytes).blockSize, 0);
  });

  it('descriptors are read up to the end of the list or of the page', () => {
    const { bytes } = page();
    bytes.set([DESCRIPTOR_TYPE.UUID, 16, 0, 0, ...Array.from({ length: 16 }, (_, n) => n + 1)], 0);
    bytes.set([0x7f, 2, 0, 0, 1, 1], 20);
    bytes.set([DESCRIPTOR_TYPE.CSI, 1, 0, 0, 2], 26);
    assert.deepEqual(descriptorsOf(bytes), {
      eui64: undefined,
      nguid: undefined,
      uuid: '01020304-0506-0708-090a-0b0c0d0e0f10',
      commandSet: 2,
    });
    const cut = new Uint8Array([DESCRIPTOR_TYPE.EUI64, 8, 0, 0, 1, 2, 3]);
    assert.equal(descriptorsOf(cut).eui64, undefined);
    assert.equal(descriptorsOf(new Uint8Array([DESCRIPTOR_TYPE.EUI64, 0, 0, 0])).eui64, undefined);
  });

  it('a list of namespaces ends at 0, or is full', () => {
    const { bytes, view } = page();
    view.setUint32(0, 1, true);
    view.setUint32(4, 7, true);
    view.setUint32(12, 9, true);
    assert.deepEqual(namespaceListOf(bytes), [1, 7]);
    bytes.fill(1);
    assert.equal(namespaceListOf(bytes).length, 1024);
  });
});

describe('NVMe log pages', () => {
  it('health counts data in units of 1000 times 512 bytes', () => {
    const { bytes, view } = page(SMART.BYTES);
    view.setUint16(SMART.TEMPERATURE, 310, true);
    view.setUint32(SMART.DATA_READ, 3, true);
    view.setUint32(SMART.POWER_CYCLES + 4, 1, true);
    const health = healthOf(bytes);
    assert.deepEqual([health.temperature, health.bytesRead, health.powerCycles], [310, 1_536_000, 2 ** 32]);
  });

  it('entries of the error log are those in use', () => {
    const { bytes, view } = page(3 * ERROR_ENTRY.BYTES);
    const at = ERROR_ENTRY.BYTES;
    view.setUint32(at + ERROR_ENTRY.COUNT, 5, true);
    view.setUint16(at + ERROR_ENTRY.SQ_ID, 2, true);
    view.setUint16(at + ERROR_ENTRY.CID, 77, true);
    view.setUint16(at + ERROR_ENTRY.STATUS, (0x4080 << 1) | 1, true);
    view.setUint32(at + ERROR_ENTRY.LBA, 123, true);
    view.setUint32(at + ERROR_ENTRY.NSID, 1, true);
    assert.deepEqual(errorEntriesOf(bytes), [
      { count: 5, queue: 2, commandId: 77, status: 0x4080, lba: 123, namespace: 1 },
    ]);
  });

  it('firmware slots are counted from 1', () => {
    const { bytes } = page(FIRMWARE_LOG.BYTES);
    bytes[FIRMWARE_LOG.ACTIVE] = 0x21;
    putPadded(bytes, FIRMWARE_LOG.REVISIONS + 8, 8, '2.0');
    assert.deepEqual(firmwareOf(bytes), { active: 1, next: 2, revisions: ['', '2.0', '', '', '', '', ''] });
  });
});
