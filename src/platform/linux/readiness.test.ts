import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { openPlatform } from '../open.js';
import type { Polled, Watch } from '../ports.js';
import { trackingPlatform } from '../../../test/fakes/platform/platforms.js';
import { until } from '../../../test/shared/until.js';

const platform = trackingPlatform(openPlatform());
const { events, files, memory, readiness, sockets } = platform;
const skip = platform.limitation ?? false;
const closeAll = (...fds: readonly number[]): void => fds.forEach((fd) => files.close(fd));

/** A new process that runs `code` with a platform's ports in scope. */
function child(code: string): { status: number | null; stdout: string; stderr: string } {
  const url = new URL('../open.js', import.meta.url).href;
  const script = `
    import { openPlatform } from ${JSON.stringify(url)};
    const { events, files, memory, readiness, sockets } = openPlatform();
    ${code}`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', script], { encoding: 'utf8', timeout: 20_000 });
}

test('a watch is silent while nothing happens, and level-triggered when something does', { skip }, async () => {
  const fd = events.create();
  let calls = 0;
  const watch = readiness.watch(fd, { readable: true }, () => {
    if (++calls === 3) events.take(fd);
  });
  await sleep(50);
  assert.equal(calls, 0);
  events.signal(fd);
  await sleep(50);
  assert.equal(calls, 3, 'once a turn until it was drained');
  watch.close();
  watch.close();
  events.signal(fd);
  await sleep(20);
  assert.equal(calls, 3);
  closeAll(fd);
  assert.deepEqual(platform.leaks(), []);
});

test('promises go on from within a callback, without anything else happening', { skip }, () => {
  const { stdout } = child(`
    const fd = events.create();
    const steps = [];
    let watch;
    const signalled = new Promise((resolve) => {
      watch = readiness.watch(fd, { readable: true }, () => { events.take(fd); resolve(); });
    });
    events.signal(fd);
    // A timer far away: were promises only run at its time, the second step would come after it.
    const timer = setTimeout(() => steps.push('timer'), 2000);
    await signalled;
    await null;
    steps.push('promise');
    process.nextTick(() => { clearTimeout(timer); watch.close(); console.log(steps.join()); });
  `);
  assert.equal(stdout.trim(), 'promise');
});

test('an exception in a callback is an uncaught exception, as anywhere', { skip }, () => {
  const { status, stdout } = child(`
    const fd = events.create();
    events.signal(fd);
    const watch = readiness.watch(fd, { readable: true }, () => { events.take(fd); throw new Error('mine'); });
    process.on('uncaughtException', (error) => { console.log(error.message); watch.close(); });
  `);
  assert.deepEqual([status, stdout.trim()], [0, 'mine']);
});

test('a watch keeps the process alive until it is told not to', { skip }, () => {
  const start = `const fd = events.create();
    let watch = readiness.watch(fd, { readable: true }, () => { console.log('called'); watch.close(); });`;
  assert.deepEqual(child(`${start} watch.setRef(false);`).stdout, '');
  assert.equal(child(`${start} watch.setRef(false);`).status, 0);
  assert.equal(
    child(`${start} watch.setRef(false); watch.setRef(true); setTimeout(() => events.signal(fd), 50).unref();`).stdout,
    'called\n',
  );
  assert.equal(child(`${start} watch.close(); watch.setRef(true); watch.setRef(false);`).status, 0);
});

test('a watch nobody holds goes on after a collection', { skip }, () => {
  const { stdout } = child(`
    import { setFlagsFromString } from 'node:v8';
    import { runInNewContext } from 'node:vm';
    setFlagsFromString('--expose-gc');
    const gc = runInNewContext('gc');
    const fd = events.create();
    readiness.watch(fd, { readable: true }, () => { console.log('called'); process.exit(); });
    setImmediate(() => { gc(); setImmediate(() => { gc(); events.signal(fd); }); });
  `);
  assert.equal(stdout, 'called\n');
});

test('what can not be polled is EPERM, not the end of the process', { skip }, () => {
  const fds = [memory.memfd({ name: 'x', length: 4096 }), files.open('/', 'read'), files.open('/dev/null', 'read')];
  for (const fd of fds)
    assert.throws(() => readiness.watch(fd, { readable: true }, () => {}), { code: 'EPERM', operation: 'watch' });
  closeAll(...fds);
  for (const fd of [99999, -1, NaN])
    assert.throws(() => readiness.watch(fd, { readable: true }, () => {}), { code: 'EBADF', operation: 'watch' });
  assert.throws(() => readiness.watch(0, {}, () => {}), { code: 'EINVAL' });
  assert.deepEqual(platform.leaks(), []);
});

test('one descriptor can be watched twice, and be closed and used again while watched', { skip }, async () => {
  const [a, b] = sockets.pair();
  let reads = 0;
  let writes = 0;
  const reader = readiness.watch(a, { readable: true }, () => {
    reads++;
    sockets.receive(a, new Uint8Array(8), 0);
  });
  const writer: Watch = readiness.watch(a, { writable: true }, () => {
    writes++;
    writer.close();
  });
  sockets.send(b, new Uint8Array(1), 0, []);
  await sleep(20);
  assert.deepEqual([reads, writes], [1, 1]);
  closeAll(a);
  const reused = events.create();
  assert.equal(reused, a, 'the number is used again');
  const second = readiness.watch(reused, { readable: true }, () => {});
  second.close();
  reader.close();
  closeAll(reused, b);
  assert.deepEqual(platform.leaks(), []);
});

test('closing one watch from another’s callback takes effect at once', { skip }, async () => {
  const fds = [events.create(), events.create()];
  let calls = 0;
  const watches = fds.map((fd) =>
    readiness.watch(fd, { readable: true }, () => {
      calls++;
      watches.forEach((each) => each.close());
    }),
  );
  fds.forEach((fd) => events.signal(fd));
  await sleep(20);
  assert.equal(calls, 1);
  closeAll(...fds);
});

test('a watch survives an error condition for as long as nobody deals with it', { skip }, async () => {
  const [a, b] = sockets.pair();
  sockets.send(a, new Uint8Array(10), 0, []);
  let calls = 0;
  const watch = readiness.watch(a, { readable: true }, () => {
    calls++;
  });
  closeAll(b); // with bytes it has not read: a connection reset at the other end
  await until(() => calls >= 3);
  assert.throws(() => sockets.receive(a, new Uint8Array(8), 0), { code: 'ECONNRESET' });
  watch.close();
  closeAll(a);
  assert.deepEqual(platform.leaks(), []);
});

test('wait tells whether any is ready, at once or in time', { skip }, () => {
  const fds = [events.create(), events.create()];
  const readable: Polled[] = fds.map((fd) => ({ fd, readable: true, writable: false }));
  assert.equal(readiness.wait(readable, 0), false);
  const before = performance.now();
  assert.equal(readiness.wait(readable, 30), false);
  assert.ok(performance.now() - before >= 29);
  events.signal(fds[1]);
  assert.equal(readiness.wait(readable, Infinity), true);
  assert.deepEqual(
    readable.map(({ ready }) => ready),
    [false, true],
  );
  assert.equal(readiness.wait([readable[0]], 0.5), false);
  assert.equal(readiness.wait([{ fd: fds[0], readable: false, writable: true }], 1000), true);
  assert.equal(readiness.wait([], 1), false);
  assert.equal(
    readiness.wait([{ fd: 99999, readable: true, writable: false }], 1000),
    true,
    'an error counts as ready',
  );
  const many = Array.from({ length: 100 }, () => readable[0]);
  assert.equal(readiness.wait(many, 0), false);
  assert.equal(readiness.wait([...many, readable[1]], 0), true);
  for (const time of [-1, NaN])
    assert.throws(() => readiness.wait(readable, time), { code: 'EINVAL', operation: 'poll' });
  assert.throws(() => readiness.wait([{ fd: -1, readable: true, writable: false }], 0), { code: 'EBADF' });
  closeAll(...fds);
  const [a, b] = sockets.pair();
  closeAll(b);
  assert.equal(readiness.wait([{ fd: a, readable: false, writable: false }], 1000), true, 'so does a hang-up');
  closeAll(a);
});

test('wait goes on after a signal', { skip }, () => {
  const { stdout } = child(`
    import { spawn } from 'node:child_process';
    process.on('SIGUSR2', () => {});
    const fd = events.create();
    const killer = spawn('/bin/sh', ['-c', 'for i in 1 2 3; do sleep 0.05; kill -USR2 ' + process.pid + '; done']);
    const before = performance.now();
    console.log(readiness.wait([{ fd, readable: true, writable: false }], 400), performance.now() - before >= 399);
  `);
  assert.equal(stdout.trim(), 'false true');
});

test('a process that ends with an open watch just ends, also when something happens at that moment', { skip }, () => {
  const { status, stderr } = child(`
    const fd = events.create();
    const watch = readiness.watch(fd, { readable: true }, () => events.take(fd));
    watch.setRef(false);
    process.on('exit', () => events.signal(fd));`);
  assert.deepEqual([status, stderr], [0, '']);
});
