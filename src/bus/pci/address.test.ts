import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { parsePciAddress, requesterId } from './address.js';

describe('PCI addresses', () => {
  const good: [text: string, address: string][] = [
    ['0000:00:02.0', '0000:00:02.0'],
    ['00:02.0', '0000:00:02.0'],
    ['0:2.0', '0000:00:02.0'],
    ['1:02.3', '0000:01:02.3'],
    ['AF:1f.7', '0000:af:1f.7'],
    ['0001:af:00.1', '0001:af:00.1'],
    ['10000:e1:00.0', '10000:e1:00.0'],
  ];
  for (const [text, address] of good)
    it(`${text} is ${address}`, () => {
      assert.equal(parsePciAddress(text), address);
    });

  for (const text of ['', '00:02', '00:02.8', '00:20.0', '000:02.0', 'eth0', '0000:00:02.0 ', 'x:00.0', '../0:2.0'])
    it(`${JSON.stringify(text)} is none`, () => {
      assert.equal(parsePciAddress(text), undefined);
    });

  it('what sysfs writes stays as it is', () => {
    const part = (max: number): fc.Arbitrary<number> => fc.integer({ min: 0, max });
    fc.assert(
      fc.property(part(0xffff), part(255), part(31), part(7), (domain, bus, device, fn) => {
        const hex = (value: number, width: number): string => value.toString(16).padStart(width, '0');
        const address = `${hex(domain, 4)}:${hex(bus, 2)}:${hex(device, 2)}.${fn}`;
        assert.equal(parsePciAddress(address), address);
        assert.equal(requesterId(address), (bus << 8) | (device << 3) | fn);
      }),
    );
  });
});
