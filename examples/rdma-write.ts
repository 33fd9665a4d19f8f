/**
 * Memory of this process is written to memory of another one, here or on another host, by RDMA. Start one side with "serve",
 * then the other with the host that it is on:
 *
 *   node rdma-write.js serve          node rdma-write.js 192.0.2.1
 *
 * Any RDMA device will do; as root, "rdma link add rxe0 type rxe netdev NAME" makes one of a network interface.
 */
import { Eal, isDmaError } from 'anydma';
import { connectToPeer, listenForPeers, verbsDriver } from 'anydma/rdma';

const PORT = 7471;
const LENGTH = 2 ** 20;

const [what, name = 'rdma:rxe0'] = process.argv.slice(2);
if (what === undefined) {
  console.log('It takes two: "serve" for one side, and for the other the host that serves.');
  process.exit();
}

await using eal = await Eal.start();
const device = await eal.probe(name);
const rdma = device.use(verbsDriver);
using memory = eal.external.allocate(LENGTH);

if (what === 'serve') {
  // Peers may write to it, by its rkey. That is all that differs from mapping for any other device.
  using mapping = device.dmaMap(memory, { remote: 'write' });
  const { va, rkey = 0 } = mapping;
  await using server = await listenForPeers({ port: PORT }, async (session) => {
    using pair = rdma.createQueuePair();
    session.explainFrom(rdma);
    session.greet({ pairs: [pair.address], memory: [{ address: va, length: LENGTH, rkey }] });
    await session.join(pair);
    await session.ended;
    console.log(`${session.peer} has written; the first byte is ${memory.bytes()[0]}`);
  });
  console.log(`serving ${device.name} at port ${server.port}, until Ctrl-C`);
  await new Promise((resolve) => process.once('SIGINT', resolve));
} else {
  using _mapping = device.dmaMap(memory, { access: 'read' });
  memory.bytes().fill(42);
  using pair = rdma.createQueuePair();
  using session = await connectToPeer({ host: what, port: PORT, hello: { pairs: [pair.address], memory: [] } });
  await session.join(pair);
  const [remote] = session.hello.memory;
  if (remote === undefined) throw new Error('the peer offers no memory');
  await pair.write({ local: { va: memory.va, length: LENGTH }, remote });
  console.log(`${LENGTH} bytes are in the memory of ${session.peer}`);

  // A byte too far: the peer's device refuses, and the peer tells why.
  try {
    await pair.write({
      local: { va: memory.va, length: 4096 },
      remote: { ...remote, address: remote.address + LENGTH - 4095 },
    });
  } catch (error) {
    if (!isDmaError(error)) throw error;
    console.log(`${error.code}: ${error.reason}\n${error.hint ?? ''}`);
  }
}
