"""A real Kubernetes on one machine, without Docker: `python -m k8s.local up`, and `down`.

    plan            names and addresses                 pure
    layout          the two folders: state, and cache
    requirements    what the machine must have
    binaries        Kubernetes, CoreDNS, KubeRay from Go modules, cached by version
    images          the images that the cluster cannot pull, made by buildah
    certificates    one authority, and who is who
    machine         a machine: namespaces of its own, and its first process (init)
    network         the cable between machines
    processes       start in a machine, wait with a deadline
    control_plane   etcd, API server, controller manager, scheduler
    node            containerd, kubelet, kube-proxy, NetworkPolicy
    addons          CoreDNS, the KubeRay operator
    up, down        all of it, and nothing of it

What a cluster is made of lies in one folder and ends with its processes (`layout`, `machine`).
"""
