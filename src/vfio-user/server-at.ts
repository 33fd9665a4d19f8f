/** Who serves at the path of a socket, and why nobody does. */
import { dirname } from 'node:path';
import { DmaError, forPeople, isDmaError } from '../errors.js';
import type { Peer, Platform } from '../platform/ports.js';

/** Who is at the other end; `undefined` where that can not be told. */
export function peerOf({ sockets }: Platform, fd: number): Peer | undefined {
  try {
    return sockets.peer(fd);
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  }
}

/** Looks who listens, before anything is sent. @throws DmaError EACCES */
export function checkServer(platform: Platform, fd: number, path: string, user: number | undefined): void {
  const peer = peerOf(platform, fd);
  if (peer === undefined) return;
  const refuse = (reason: string, hint: string): DmaError =>
    new DmaError({ code: 'EACCES', operation: 'vfio-user', reason, hint });
  const whose = `the server at ${path} is of the user with the number ${peer.user}`;
  if (user !== undefined) {
    if (peer.user === user) return;
    throw refuse(`${whose}, not ${user}`, `user=${peer.user} connects to it all the same`);
  }
  if (peer.trusted || !othersMayWrite(platform, dirname(path))) return;
  throw refuse(
    `${whose}, and others may make sockets in its folder`,
    `if that is who you mean, say so: user=${peer.user}; else use a folder that only you can write to`,
  );
}

/** May anybody but its owner write to the folder? What can not be looked at is taken for such. */
function othersMayWrite({ files }: Platform, folder: string): boolean {
  let fd: number | undefined;
  try {
    fd = files.open(folder, 'read', { directory: true });
    return (files.status(fd).mode & 0o022) !== 0;
  } catch (error) {
    if (isDmaError(error)) return true;
    throw error;
  } finally {
    if (fd !== undefined) files.close(fd);
  }
}

/** What is at `path`, where nobody took the connection. */
export function whoRefuses({ files }: Platform, path: string): string {
  let fd: number | undefined;
  try {
    fd = files.open(path, 'read', { follow: false });
    return files.status(fd).kind === 'directory'
      ? `${path} is a directory: give the socket in it (SPDK calls it "cntrl")`
      : `${path} is a file and no socket`;
  } catch (error) {
    if (!isDmaError(error)) throw error;
    return 'nobody listens there any more: the server that made the socket has ended; start it again';
  } finally {
    if (fd !== undefined) files.close(fd);
  }
}

/** What to do where there is no socket, or none that this user may connect to. */
export function whyNoSocket({ kernel }: Platform, path: string, { code }: DmaError): string | undefined {
  if (code === 'EACCES' || code === 'EPERM')
    return `this user may not write to the socket, or not enter its folder: "ls -l ${path}" shows whose it is`;
  if (code === 'ENAMETOOLONG') return 'put the socket into a folder with a shorter path, or connect by a symbolic link';
  const folder = dirname(path);
  if (code === 'ENOTDIR') return `${folder} is a file and no folder`;
  if (code !== 'ENOENT') return undefined;
  const start =
    'the server makes the socket when it starts, such as "anydma serve DEVICE --socket PATH": start it first';
  if (forPeople(() => kernel.realPath(folder)) === undefined) return `there is no folder ${folder}; ${start}`;
  const others = forPeople(() => kernel.list(folder).filter((name) => SOCKET_NAME.test(name))) ?? [];
  const seen = others.length === 0 ? '' : `; ${folder} has ${others.slice(0, 4).join(', ')}`;
  return `${start}${seen}`;
}

/** What sockets are usually called. */
const SOCKET_NAME = /\.sock(et)?$|^cntrl$/;
