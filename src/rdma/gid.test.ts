import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { VerbsGid } from '../platform/rdma/verbs-types.js';
import { chooseGid, isUnicast } from './gid.js';

/** A GID of an IPv4 address, or of an IPv6 one that is written in full. */
function gid(address: string): string {
  if (address.includes(':')) return address;
  const bytes = address.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'));
  return `0000:0000:0000:0000:0000:ffff:${bytes.slice(0, 2).join('')}:${bytes.slice(2).join('')}`;
}

/** The place of the one that is chosen. */
function chosen(addresses: readonly string[], types: readonly VerbsGid['type'][] = []): number | undefined {
  const gids = addresses.map((address, index) => ({
    port: 1,
    index,
    gid: gid(address),
    type: types[index] ?? ('roce-v2' as const),
    interfaceIndex: 2,
  }));
  return chooseGid(gids, 1)?.index;
}

const V6 = '2001:0db8:0000:0000:0000:0000:0000:0001';
const LOCAL6 = 'fe80:0000:0000:0000:0000:0000:0000:0001';

describe('the address of a port that nobody chose', () => {
  it('leads beyond the link where one does', () => {
    assert.equal(chosen(['169.254.3.4', '10.1.2.3']), 1);
    assert.equal(chosen(['169.254.3.4', V6]), 1);
    assert.equal(chosen([LOCAL6, V6, '10.1.2.3', '10.1.2.4']), 2);
    for (const local of ['fe80', 'fe90', 'feaf', 'febf'])
      assert.equal(chosen([LOCAL6.replace('fe80', local), V6]), 1, local);
    // fec0::/10 is not link-local, nor is 169.253.
    assert.equal(chosen([LOCAL6.replace('fe80', 'fec0'), LOCAL6]), 0);
    assert.equal(chosen(['169.254.0.1', '169.253.255.255']), 1);
  });

  it('is a link-local one before a loopback one, and both before none', () => {
    assert.equal(chosen(['127.0.0.1', LOCAL6]), 1);
    assert.equal(chosen([LOCAL6, '169.254.1.1']), 1);
    assert.equal(chosen(['0000:0000:0000:0000:0000:0000:0000:0001', '127.1.2.3']), 1);
  });

  it('is one of RoCE version 2 where there is one that leads anywhere', () => {
    assert.equal(chosen(['10.0.0.1', '10.0.0.1'], ['roce-v1', 'roce-v2']), 1);
    assert.equal(chosen(['10.0.0.1', LOCAL6], ['roce-v1', 'roce-v2']), 1);
    assert.equal(chosen(['127.0.0.1', LOCAL6], ['roce-v2', 'roce-v1']), 1);
    assert.equal(chosen([LOCAL6, LOCAL6], ['ib', 'ib']), 0);
  });

  it('is never zero, broadcast or multicast', () => {
    const nobody = ['0.0.0.0', '224.0.0.1', '239.255.255.255', '255.255.255.255', `ff02${LOCAL6.slice(4)}`];
    for (const address of [...nobody, LOCAL6.replace('fe80', '0000').replace('0001', '0000')]) {
      assert.equal(chosen([address]), undefined, address);
      assert.equal(chosen([address, LOCAL6]), 1, address);
      assert.equal(isUnicast(gid(address)), false, address);
    }
    assert.equal(chosen([LOCAL6.replace('fe80', '0000').replace('0001', '0000'), LOCAL6], ['ib', 'ib']), 1);
    assert.equal(isUnicast('fe80::1'), false);
  });
});
