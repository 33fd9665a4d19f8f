/** `anydma forward` with the kernel at the other end: pings are answered, and connections go through two interfaces. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Room } from '../../../test/shared/command.js';

const MAIN = fileURLToPath(new URL('../main.js', import.meta.url));

/** A network namespace of its own, in which it may make interfaces: the machine's network is not touched. */
const APART = ['-n', ...(process.getuid?.() === 0 ? [] : ['-r'])];
const PING = [['ping'], ['busybox', 'ping']].find(([program, ...rest]) => {
  const { error } = spawnSync(program, [...rest, '--help']);
  return error === undefined;
});

function whyNot(): string | false {
  const script = 'ip tuntap add dev try0 mode tap && ip link del try0';
  const { status, error } = spawnSync('unshare', [...APART, 'sh', '-c', script]);
  return status === 0 ? false : (error?.message ?? 'interfaces can not be made here');
}
const skip = whyNot();

/** Runs a script in a namespace of its own, in which `forward` and `ping` are there. @returns what it says */
async function apart(room: Room, script: string): Promise<string> {
  writeFileSync(
    room.file('script'),
    `set -e
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
forward() { exec ${process.execPath} ${MAIN} forward "$@"; }
finish() { kill -INT $1; wait $1 || test $? = 130; }
ping() { command ${PING?.join(' ') ?? 'false'} "$@"; }
there() { until ip link show "$1" > /dev/null 2>&1; do sleep 0.05; done; }
up() { there "$1"; ip link set "$1" up; }
${script}`,
  );
  const child = spawn('unshare', [...APART, 'bash', room.file('script')], { cwd: room.path });
  let [out, errors] = ['', ''];
  child.stdout.on('data', (data) => (out += String(data)));
  child.stderr.on('data', (data) => (errors += String(data)));
  const status = await new Promise((resolve) => child.on('close', resolve));
  assert.equal(status, 0, `${out}${errors}`);
  return out;
}

describe('anydma forward, with interfaces of the kernel', { skip }, () => {
  test('answers its pings, of all lengths', { skip: PING === undefined && 'without ping' }, async () => {
    using room = new Room();
    const out = await apart(
      room,
      `forward --port vdev:tap0,iface=echo0 --mode icmpecho --json > result & f=$!
       up echo0
       ip addr add 10.9.0.1/24 dev echo0
       for size in 1 56 1000 1472; do ping -c 3 -i 0.2 -s $size 10.9.0.2; done
       ip link set echo0 down
       ip link set echo0 up
       ping -c 2 10.9.0.3
       finish $f
       ! ip link show echo0 2> /dev/null
       cat result`,
    );
    assert.equal(out.match(/ 0% packet loss/g)?.length, 5, out);
    assert.match(out, /"txErrors": 0/);
  });

  /** A server that takes everything and tells its sum, and a client that sends, beyond the forwarder. */
  const transfer = (mode: string, more = ''): string => `
    forward --port vdev:tap0,iface=left0${more} --port vdev:tap1,iface=right0${more} --mode ${mode} --json > result & f=$!
    unshare -n sleep 1000 & other=$!
    up left0
    there right0
    until ip link set right0 netns $other 2> /dev/null; do sleep 0.05; done
    ip addr add 10.9.0.1/24 dev left0
    nsenter -t $other -n ip addr add 10.9.0.2/24 dev right0
    nsenter -t $other -n ip link set right0 up
    nsenter -t $other -n ${process.execPath} server.mjs > received & server=$!
    ${process.execPath} client.mjs > sent
    wait $server
    cmp sent received
    cat sent
    finish $f
    kill $other
    cat result`;

  for (const mode of ['io', 'csum'] as const)
    test(`a connection of 20 MB goes through, ${mode}`, async () => {
      using room = new Room();
      writeFileSync(
        room.file('server.mjs'),
        `import { createServer } from 'node:net';
         import { createHash } from 'node:crypto';
         const server = createServer((socket) => {
           const hash = createHash('sha256');
           let bytes = 0;
           socket.on('data', (data) => { hash.update(data); bytes += data.length; });
           socket.on('end', () => { console.log(bytes, hash.digest('hex')); socket.end(); server.close(); });
         }).listen(7000, '10.9.0.2');`,
      );
      writeFileSync(
        room.file('client.mjs'),
        `import { connect } from 'node:net';
         import { createHash, randomBytes } from 'node:crypto';
         const data = randomBytes(20 * 2 ** 20);
         const tries = () => {
           const socket = connect(7000, '10.9.0.2', () => {
             socket.end(data);
             console.log(data.length, createHash('sha256').update(data).digest('hex'));
           });
           socket.on('error', (error) => { if (error.code === 'ECONNREFUSED' || error.code === 'EHOSTUNREACH') setTimeout(tries, 100); else throw error; });
           socket.resume();
         };
         tries();`,
      );
      const out = await apart(room, transfer(mode));
      assert.match(out, /^20971520 [0-9a-f]{64}$/m);
      const { ports } = JSON.parse(out.slice(out.indexOf('{'))) as { ports: { rxBytes: number; txErrors: number }[] };
      assert.ok(ports !== undefined, out);
      assert.ok(ports[0].rxBytes > 20 * 2 ** 20);
      for (const { txErrors } of ports) assert.equal(txErrors, 0);
    });

  test('what can not be opened says why', async () => {
    using room = new Room();
    const out = await apart(
      room,
      `complaint() { ( forward "$@" --duration 1 2>&1 ) || true; }
       complaint --port vdev:tap0,iface=name-that-is-too-long
       complaint --port vdev:tap0,iface=lo
       ip tuntap add dev mine mode tap
       forward --port vdev:tap0,iface=mine --mode rxonly > /dev/null 2>&1 & f=$!
       until grep -q LOWER_UP <(ip link set mine up; ip link show mine); do sleep 0.05; done
       complaint --port vdev:tap0,iface=mine
       complaint --port vdev:tap0,mtu=9000,iface=large --port vdev:tap1,iface=large
       setpriv --reuid 65534 --clear-groups --bounding-set -all true 2> /dev/null && complaint() { ( setpriv --reuid 65534 --clear-groups ${process.execPath} ${MAIN} forward "$@" --duration 1 2>&1 ) || true; }
       complaint --port vdev:tap0,iface=not-mine
       finish $f
       ip link show mine`,
    );
    assert.match(out, /can not be called "name-that-is-too-long"/);
    assert.match(out, /hint: there is an interface lo of another kind/);
    assert.match(out, /hint: another program has mine/);
    assert.match(out, /hint: another program has large/);
    if (process.getuid?.() === 0)
      assert.match(out, /hint: making an interface takes CAP_NET_ADMIN.*ip tuntap add dev not-mine/);
    assert.match(out, /mine: <.*NO-CARRIER/, 'an interface that was there stays');
  });

  test('one that is removed is lost', async () => {
    using room = new Room();
    const out = await apart(
      room,
      `forward --port vdev:tap0,iface=gone0 --mode icmpecho > said 2>&1 & f=$!
       up gone0
       sleep 0.5
       ip link del gone0
       wait $f || echo "status $?"
       cat said`,
    );
    assert.match(out, /the interface gone0 is gone/);
    assert.match(out, /status 1/);
  });
});
