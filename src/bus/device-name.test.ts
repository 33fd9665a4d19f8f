import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { DmaError, isDmaError } from '../errors.js';
import { parseDeviceSpec } from './device-name.js';

/** The parts of a text, those that are not there left out. */
function parse(text: string): Record<string, unknown> {
  const { args, ...spec } = parseDeviceSpec(text);
  const parts = Object.entries({ ...spec, args: args.size === 0 ? undefined : Object.fromEntries(args) });
  return Object.fromEntries(parts.filter(([, value]) => value !== undefined));
}

describe('bus:name[,key=value...]', () => {
  const good: [text: string, expected: Record<string, unknown>][] = [
    ['vdev:edu0', { bus: 'vdev', name: 'edu0' }],
    ['edu0', { name: 'edu0' }],
    ['1:2.3', { name: '1:2.3' }],
    ['pci:1:2.3,k0=v0', { bus: 'pci', name: '1:2.3', args: { k0: 'v0' } }],
    ['net_ring0,k=', { name: 'net_ring0', args: { k: '' } }],
    ['vfio-user:/run/a.sock', { bus: 'vfio-user', name: '/run/a.sock' }],
    ['/run/bus=1/a.sock', { name: '/run/bus=1/a.sock' }],
    ['vfio-user:/run/driver=x/a.sock,a=b=c', { bus: 'vfio-user', name: '/run/driver=x/a.sock', args: { a: 'b=c' } }],
    ['vdev:edu0,path=/a//b/class=eth', { bus: 'vdev', name: 'edu0', args: { path: '/a//b/class=eth' } }],
    ['./x.sock', { name: './x.sock' }],
    ['vfio-user:a\nb/c', { bus: 'vfio-user', name: 'a\nb/c' }],
  ];
  for (const [text, expected] of good)
    it(`reads ${JSON.stringify(text)}`, () => {
      assert.deepEqual(parse(text), expected);
    });
});

describe("DA-01: DPDK's layered form", () => {
  const good: [text: string, expected: Record<string, unknown>][] = [
    ['bus=pci', { bus: 'pci' }],
    ['class=eth', { deviceClass: 'eth' }],
    ['driver=edu', { driver: 'edu' }],
    ['bus=pci,addr=1:2.3', { bus: 'pci', name: '1:2.3' }],
    [
      'bus=pci,addr=1:2.3/class=eth/driver=abc,k0=v0',
      { bus: 'pci', name: '1:2.3', deviceClass: 'eth', driver: 'abc', args: { k0: 'v0' } },
    ],
    ['bus=vdev,name=/dev/file/name/class=eth', { bus: 'vdev', name: '/dev/file/name', deviceClass: 'eth' }],
    [
      'bus=vdev,name=/class/bus/path,k0=/class/bus/path/driver=x',
      { bus: 'vdev', name: '/class/bus/path', driver: 'x', args: { k0: '/class/bus/path' } },
    ],
    ['bus=vdev,k0=///dblslsh', { bus: 'vdev', args: { k0: '///dblslsh' } }],
    ['bus=vdev,k0=a=b/class=eth,k1=', { bus: 'vdev', deviceClass: 'eth', args: { k0: 'a=b', k1: '' } }],
    ['driver=x,name=n/bus=vdev,name=edu0', { bus: 'vdev', driver: 'x', name: 'edu0', args: { name: 'n' } }],
    ['bus=vdev,name=edu0/driver=x,addr=1', { bus: 'vdev', driver: 'x', name: 'edu0', args: { addr: '1' } }],
  ];
  for (const [text, expected] of good)
    it(`reads ${text}`, () => {
      assert.deepEqual(parse(text), expected);
    });
});

describe('a malformed text', () => {
  const bad: [text: string, code: string, says: RegExp][] = [
    ['', 'EINVAL', /names no device/],
    [',a=b', 'EINVAL', /names no device/],
    ['vdev:', 'EINVAL', /names no device/],
    ['vdev:,a=b', 'EINVAL', /names no device/],
    ['vdev:edu0,', 'EINVAL', /"" in .* is not key=value/],
    ['vdev:edu0,a', 'EINVAL', /"a" in .* is not key=value/],
    ['vdev:edu0,=b', 'EINVAL', /"=b" in .* is not key=value/],
    ['vdev:edu0,a=1,a=2', 'EINVAL', /gives a twice/],
    ['bus=pci,addr=', 'EINVAL', /names no device/],
    ['bus=pci,addr', 'EINVAL', /"addr" in .* is not key=value/],
    ['bus=pci,', 'EINVAL', /is not key=value/],
    ['bus=pci/bus=vdev', 'EINVAL', /two layers bus/],
    ['bus=pci,a=1/driver=x,a=2', 'EINVAL', /gives a twice/],
    ['bus=pci/class=eth/driver=x/driver=y', 'E2BIG', /more than three layers/],
  ];
  for (const [text, code, says] of bad)
    it(`${JSON.stringify(text)} is ${code}`, () => {
      assert.throws(
        () => parseDeviceSpec(text),
        (error) => error instanceof DmaError && error.code === code && says.test(error.message),
      );
    });

  it('always throws a DmaError', () => {
    const token = fc.constantFrom(
      'bus=vdev',
      'bus=',
      'class=',
      'driver=',
      ',name=',
      '/',
      ',',
      '=',
      ':',
      'vdev',
      'a',
      '',
    );
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.array(token, { maxLength: 12 }).map((all) => all.join('')),
        ),
        (text) => {
          try {
            const { name } = parseDeviceSpec(text);
            assert.notEqual(name, '', 'a name is either left out or not empty');
          } catch (error) {
            assert.ok(isDmaError(error), String(error));
          }
        },
      ),
    );
  });
});
