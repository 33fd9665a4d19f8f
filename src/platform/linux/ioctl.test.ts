import { test } from 'node:test';
import assert from 'node:assert/strict';
import { openPlatform } from '../open.js';

const platform = openPlatform();
const { files, ioctl, sockets } = platform;
const skip = platform.limitation ?? false;

/** include/uapi/asm-generic/ioctls.h: how many bytes can be read; sets or clears O_NONBLOCK; sets or clears close-on-exec. */
const FIONREAD = 0x541b;
const FIONBIO = 0x5421;
const FIOCLEX = 0x5451;

test('an argument goes in and comes out', { skip }, () => {
  const [a, b] = sockets.pair();
  sockets.send(a, new Uint8Array(1234), 0, []);
  const argument = new Uint32Array(1);
  const bytes = new Uint8Array(argument.buffer);
  assert.equal(ioctl.call(b, FIONREAD, bytes, 'FIONREAD'), 0);
  assert.equal(argument[0], 1234);
  argument[0] = 1;
  assert.equal(ioctl.call(b, FIONBIO, bytes, 'FIONBIO'), 0);
  assert.equal(ioctl.call(b, FIOCLEX, 0, 'FIOCLEX'), 0);
  files.close(a);
  files.close(b);
});

test('errors carry the name and the kernel’s code', { skip }, () => {
  const [a, b] = sockets.pair();
  assert.throws(() => ioctl.call(a, 0x3b71, new Uint8Array(32), 'VFIO_IOMMU_MAP_DMA'), {
    code: 'ENOTTY',
    operation: 'VFIO_IOMMU_MAP_DMA',
  });
  assert.throws(() => ioctl.call(99999, FIONREAD, 0, 'FIONREAD'), { code: 'EBADF' });
  assert.throws(() => ioctl.call(NaN, FIONREAD, 0, 'FIONREAD'), { code: 'EBADF' });
  assert.throws(() => ioctl.call(a, FIONREAD, 0, 'FIONREAD'), { code: 'EFAULT' });
  assert.throws(() => ioctl.call(a, FIONREAD, NaN, 'FIONREAD'), { code: 'EINVAL' });
  for (const request of [-1, NaN, 2 ** 32]) assert.throws(() => ioctl.call(a, request, 0, 'X'), { code: 'EINVAL' });
  files.close(a);
  files.close(b);
});
