import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { networkOf } from './visitors.js';

describe('where a visitor is from', () => {
  it('is his address, or of IPv6 his network', () => {
    for (const [address, network] of [
      ['10.1.2.3', '10.1.2.3'],
      ['', ''],
      ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
      ['2001:db8::1', '2001:db8:0:0'],
      ['2001:0DB8:0:0:ffff::', '2001:db8:0:0'],
      ['fe80::1%eth0', 'fe80:0:0:0'],
      ['::1', '0:0:0:0'],
    ])
      assert.equal(networkOf(address ?? ''), network, address);
  });
});
