/** Checks which user serves at a socket, and explains why connecting failed. */
import { dirname } from 'node:path';
import { DmaError, forPeople, isDmaError } from '../errors.js';
import type { Peer, Platform } from '../platform/ports.js';

/** The process at the other end; `undefined` if that can not be found out. */
export function peerOf({ sockets }: Platform, fd: number): Peer | undefined {
  try {
    return sockets.peer(fd);
  } catch (error) {
    if (isDmaError(error)) return undefined;
    throw error;
  }
}

/** Checks the user of the server before anything is sent. @throws DmaError EACCES */
export function checkServer(platform: Platform, fd: number, path: string, user: number | undefined): void {
  const peer = peerOf(platform, fd);
  if (peer === undefined) return;
  const refuse = (reason: string, hint: string): DmaError =>
    new DmaError({ code: 'EACCES', operation: 'vfio-user', reason, hint });
  const whose = `the server at ${path} runs as user ${peer.user}`;
  if (user !== undefined) {
    if (peer.user === user) return;
    throw refuse(`${whose}, not ${user}`, `user=${peer.user} connects to it anyway`);
  }
  if (peer.trusted || !othersMayWrite(platform, dirname(path))) return;
  throw refuse(
    `${whose}, and other users can create sockets in its folder`,
    `if that server is intended, add user=${peer.user}; else use a folder that only you can write to`,
  );
}

/** Whether other users than its owner may write to the folder. If that can not be found out: true. */
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

/** Why the connection to `path` was refused. */
export function whoRefuses({ files }: Platform, path: string): string {
  let fd: number | undefined;
  try {
    fd = files.open(path, 'read', { follow: false });
    return files.status(fd).kind === 'directory'
      ? `${path} is a directory: give the socket in it (SPDK calls it "cntrl")`
      : `${path} is a file, not a socket`;
  } catch (error) {
    if (!isDmaError(error)) throw error;
    return 'no server listens there any more: the server that created the socket has ended; start it again';
  } finally {
    if (fd !== undefined) files.close(fd);
  }
}

/** The hint if there is no socket, or this user may not connect to it. */
export function whyNoSocket({ kernel }: Platform, path: string, { code }: DmaError): string | undefined {
  if (code === 'EACCES' || code === 'EPERM')
    return `this user may not write to the socket, or not enter its folder: "ls -l ${path}" shows the owner`;
  if (code === 'ENAMETOOLONG') return 'put the socket into a folder with a shorter path, or connect by a symbolic link';
  const folder = dirname(path);
  if (code === 'ENOTDIR') return `${folder} is a file, not a folder`;
  if (code !== 'ENOENT') return undefined;
  const start =
    'the server creates the socket when it starts, such as "anydma serve DEVICE --socket PATH": start it first';
  if (forPeople(() => kernel.realPath(folder)) === undefined) return `there is no folder ${folder}; ${start}`;
  const others = forPeople(() => kernel.list(folder).filter((name) => SOCKET_NAME.test(name))) ?? [];
  const seen = others.length === 0 ? '' : `; ${folder} contains ${others.slice(0, 4).join(', ')}`;
  return `${start}${seen}`;
}

/** Usual names of sockets. */
const SOCKET_NAME = /\.sock(et)?$|^cntrl$/;
